//! The plan: which program goes to which function of the orchestrator.

use lu_common::uapi::Interface;

/// One place in the orchestrator, and the programs for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    /// The function, by the kernel's name.
    pub function: &'static str,
    /// The programs' common name: `fentry_open` and `fexit_open` have `open`.
    pub program: &'static str,
    /// The prototype that the programs rely on, as the kernel's BTF tells it; where it was read is in the
    /// handler's documentation.
    pub prototype: &'static str,
    /// What would be unknown without it.
    pub tells: &'static str,
    /// Whether the exit is of interest too.
    pub exit: bool,
    /// Whether a program at the exit does all, where it still knows the arguments (fexit).
    pub at_exit: bool,
    /// From which detail on it is attached.
    pub detail: Detail,
    /// In which orchestrators the function is.
    pub place: Place,
}

/// How much is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Each call, each session's and each file's freeze, each step of the kexec.
    #[default]
    Calls,
    /// Also the other callbacks on each file, which every preserve, restore and finish then pays for.
    Callbacks,
}

/// In which orchestrators a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The kernel's and the emulated one.
    Both,
    /// The kernel's: the emulated one has no devices to shut down.
    Kernel,
    /// The emulated one: in the kernel it runs before any program can be attached.
    Emulated,
}

macro_rules! hooks {
    ($($function:ident($prototype:literal), $program:ident: $tells:literal $(, $option:ident)*;)*) => {
        &[$(
            options!(Hook {
                function: stringify!($function),
                program: stringify!($program),
                prototype: $prototype,
                tells: $tells,
                exit: true,
                at_exit: false,
                detail: Detail::Calls,
                place: Place::Both,
            } $(, $option)*),
        )*]
    };
}

macro_rules! options {
    ($hook:expr) => { $hook };
    ($hook:expr, entry_only $(, $rest:ident)*) => {
        options!(Hook { exit: false, ..$hook } $(, $rest)*)
    };
    ($hook:expr, at_exit $(, $rest:ident)*) => {
        options!(Hook { at_exit: true, ..$hook } $(, $rest)*)
    };
    ($hook:expr, callback $(, $rest:ident)*) => {
        options!(Hook { detail: Detail::Callbacks, ..$hook } $(, $rest)*)
    };
    ($hook:expr, system_call $(, $rest:ident)*) => {
        options!(Hook { function: SYS_REBOOT, ..$hook } $(, $rest)*)
    };
    ($hook:expr, kernel $(, $rest:ident)*) => {
        options!(Hook { place: Place::Kernel, ..$hook } $(, $rest)*)
    };
    ($hook:expr, emulated $(, $rest:ident)*) => {
        options!(Hook { place: Place::Emulated, ..$hook } $(, $rest)*)
    };
}

/// reboot(2), as the kernel calls it on this architecture (`arch/*/include/asm/syscall_wrapper.h`).
const SYS_REBOOT: &str = if cfg!(target_arch = "aarch64") {
    "__arm64_sys_reboot"
} else {
    "__x64_sys_reboot"
};

/// Every hook of the v3 interface.
const V3: &[Hook] = hooks! {
    luo_open("int (struct inode *, struct file *)"), open:
        "who opens the device, and who is refused";
    luo_release("int (struct inode *, struct file *)"), release: "the last close";
    luo_ioctl("long (struct file *, unsigned int, unsigned long)"), ioctl:
        "each call, its time and errno";
    luo_register_file("int (u64, int)"), preserve: "preserved files", at_exit;
    luo_unregister_file("int (u64)"), unpreserve: "files taken back", at_exit;
    luo_retrieve_file("int (u64, struct file **)"), restore: "restored files", at_exit;
    memfd_luo_can_preserve("bool (struct liveupdate_file_handler *, struct file *)"), can_preserve:
        "kind and size of preserved files", entry_only;
    memfd_luo_prepare("int (struct liveupdate_file_handler *, struct file *, u64 *)"), file_prepare:
        "prepare time of each file";
    memfd_luo_freeze("int (struct liveupdate_file_handler *, struct file *, u64 *)"), file_freeze:
        "freeze time of each file";
    luo_prepare("int (void)"), prepare: "the prepare phase";
    luo_freeze("int (void)"), freeze: "the freeze phase, the start of the blackout";
    luo_cancel("int (void)"), cancel: "cancelled updates";
    luo_finish("int (void)"), finish: "the finish phase";
    sys_reboot("long (const struct pt_regs *)"), sys_reboot:
        "who reboots, and how a kexec failed", system_call;
    liveupdate_reboot("int (void)"), reboot: "the kexec, and one that failed";
    machine_kexec("void (struct kimage *)"), jump: "the end of the old kernel", entry_only;
    luo_startup("int (void)"), boot: "the start of the new kernel", emulated;
    lu_verdict("void (const struct task *, const struct judged *, const struct rule_name *, const char *)"),
        verdict: "what a policy refuses", emulated, entry_only;
    lu_policy_loaded("void (const struct task *, const struct policy_loaded *)"), policy_loaded:
        "which policy is loaded", emulated, entry_only;
};

/// Every hook of the sessions interface.
const SESSIONS: &[Hook] = hooks! {
    luo_open("int (struct inode *, struct file *)"), open:
        "who opens the device, and who is refused";
    luo_release("int (struct inode *, struct file *)"), release: "the last close of the device";
    luo_ioctl("long (struct file *, unsigned int, unsigned long)"), ioctl:
        "each call on the device, its time and errno";
    luo_session_ioctl("long (struct file *, unsigned int, unsigned long)"), session_ioctl:
        "each call on a session, its time and errno";
    luo_session_create("int (const char *, struct file **)"), session_create: "sessions", at_exit;
    luo_session_retrieve("int (const char *, struct file **)"), session_retrieve:
        "sessions found again", at_exit;
    luo_session_release("int (struct inode *, struct file *)"), session_release:
        "the last close of a session";
    luo_preserve_file("int (struct luo_file_set *, u64, int)"), session_preserve_file:
        "preserved files", at_exit;
    luo_retrieve_file("int (struct luo_file_set *, u64, struct file **)"), session_restore_file:
        "restored files", at_exit;
    luo_file_unpreserve_files("void (struct luo_file_set *)"), session_unpreserve:
        "sessions given up before the kexec";
    luo_file_freeze("int (struct luo_file_set *, struct luo_file_set_ser *)"), session_freeze:
        "freeze time of each session";
    luo_file_unfreeze("void (struct luo_file_set *, struct luo_file_set_ser *)"), session_unfreeze:
        "freezes that were undone";
    luo_file_finish("int (struct luo_file_set *)"), session_finish: "finished sessions";
    luo_session_serialize("int (void)"), serialize: "the freeze phase";
    luo_session_deserialize("int (void)"), deserialize:
        "when the new kernel reads what was handed over";
    luo_flb_serialize("void (void)"), flb_serialize:
        "freeze time of what files have in common", kernel;
    memfd_luo_can_preserve("bool (struct liveupdate_file_handler *, struct file *)"), can_preserve:
        "kind and size of preserved files", entry_only;
    memfd_luo_preserve("int (struct liveupdate_file_op_args *)"), op_preserve:
        "preserve time of each memfd", callback;
    memfd_luo_freeze("int (struct liveupdate_file_op_args *)"), op_freeze:
        "freeze time of each memfd";
    memfd_luo_retrieve("int (struct liveupdate_file_op_args *)"), op_retrieve:
        "restore time of each memfd", callback;
    memfd_luo_finish("void (struct liveupdate_file_op_args *)"), op_finish:
        "finish time of each memfd", callback;
    memfd_luo_unpreserve("void (struct liveupdate_file_op_args *)"), op_unpreserve:
        "time to take each memfd back", callback;
    sys_reboot("long (const struct pt_regs *)"), sys_reboot:
        "who reboots, how a kexec failed, the start of the blackout", system_call;
    liveupdate_reboot("int (void)"), reboot: "the freeze as a whole, and one that failed";
    kernel_restart_prepare("void (char *)"), restart_prepare: "reboot notifiers", kernel;
    device_shutdown("void (void)"), device_shutdown: "the devices' shutdown", kernel;
    migrate_to_reboot_cpu("void (void)"), migrate_cpu: "the move to the last CPU", kernel;
    syscore_shutdown("void (void)"), syscore_shutdown: "the core's shutdown", kernel;
    machine_shutdown("void (void)"), machine_shutdown: "the stop of the other CPUs", kernel;
    machine_kexec("void (struct kimage *)"), jump: "the end of the old kernel", entry_only;
    luo_startup("int (void)"), boot: "the start of the new kernel", emulated;
    lu_verdict("void (const struct task *, const struct judged *, const struct rule_name *, const char *)"),
        verdict: "what a policy refuses", emulated, entry_only;
    lu_policy_loaded("void (const struct task *, const struct policy_loaded *)"), policy_loaded:
        "which policy is loaded", emulated, entry_only;
};

/// The hooks of an interface.
#[must_use]
pub const fn hooks(interface: Interface) -> &'static [Hook] {
    match interface {
        Interface::V3 => V3,
        Interface::Sessions => SESSIONS,
    }
}

impl Hook {
    /// Whether the kernel's orchestrator has the function, as far as it can be attached to.
    #[must_use]
    pub const fn is_in_kernel(&self) -> bool {
        !matches!(self.place, Place::Emulated)
    }

    /// Whether the emulated orchestrator has the function.
    #[must_use]
    pub const fn is_emulated(&self) -> bool {
        !matches!(self.place, Place::Kernel)
    }

    /// Whether the program at the exit counts it where the one at the entry was not run. That of reboot(2) does
    /// not: of other commands than KEXEC nothing is remembered.
    #[must_use]
    pub fn exit_misses_entry(&self) -> bool {
        self.exit && !self.at_exit && self.program != "sys_reboot"
    }

    /// The symbol of the function in the emulated orchestrator. One program has both interfaces, and some
    /// names are in both: those of the sessions interface bear its name.
    #[must_use]
    pub fn symbol(&self, interface: Interface) -> String {
        match interface {
            Interface::V3 => self.function.to_owned(),
            Interface::Sessions => format!("sessions.{}", self.function),
        }
    }
}
