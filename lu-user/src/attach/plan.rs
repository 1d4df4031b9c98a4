//! The plan: which program goes to which function of the orchestrator.

/// One place in the orchestrator, and the programs for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Hook {
    /// The function, by the kernel's name; the emulated orchestrator has one of the same name.
    pub function: &'static str,
    /// What would be unknown without it.
    pub tells: &'static str,
    /// The program at the entry.
    pub entry: Option<&'static str>,
    /// The program at the exit.
    pub exit: Option<&'static str>,
}

const fn hook(
    function: &'static str,
    tells: &'static str,
    entry: Option<&'static str>,
    exit: Option<&'static str>,
) -> Hook {
    Hook {
        function,
        tells,
        entry,
        exit,
    }
}

/// Every hook of the v3 interface.
pub const HOOKS: &[Hook] = &[
    hook(
        "luo_open",
        "who opens the device, and who is refused",
        Some("u_open"),
        Some("ur_open"),
    ),
    hook(
        "luo_release",
        "the last close",
        Some("u_release"),
        Some("ur_release"),
    ),
    hook(
        "luo_ioctl",
        "each call, its time and errno",
        Some("u_ioctl"),
        Some("ur_ioctl"),
    ),
    hook(
        "luo_register_file",
        "preserved files",
        Some("u_preserve"),
        Some("ur_preserve"),
    ),
    hook(
        "luo_unregister_file",
        "files taken back",
        Some("u_unpreserve"),
        Some("ur_unpreserve"),
    ),
    hook(
        "luo_retrieve_file",
        "restored files",
        Some("u_restore"),
        Some("ur_restore"),
    ),
    hook(
        "memfd_luo_can_preserve",
        "kind and size of preserved files",
        Some("u_can_preserve"),
        None,
    ),
    hook(
        "memfd_luo_prepare",
        "prepare time of each file",
        Some("u_file_prepare"),
        Some("ur_file_prepare"),
    ),
    hook(
        "memfd_luo_freeze",
        "freeze time of each file",
        Some("u_file_freeze"),
        Some("ur_file_freeze"),
    ),
    hook(
        "luo_prepare",
        "the prepare phase",
        Some("u_prepare"),
        Some("ur_prepare"),
    ),
    hook(
        "luo_freeze",
        "the freeze phase, the start of the blackout",
        Some("u_freeze"),
        Some("ur_freeze"),
    ),
    hook(
        "luo_cancel",
        "cancelled updates",
        Some("u_cancel"),
        Some("ur_cancel"),
    ),
    hook(
        "luo_finish",
        "the finish phase",
        Some("u_finish"),
        Some("ur_finish"),
    ),
    hook(
        "__x64_sys_reboot",
        "who reboots",
        Some("u_sys_reboot"),
        Some("ur_sys_reboot"),
    ),
    hook(
        "liveupdate_reboot",
        "the kexec, and one that failed",
        Some("u_reboot"),
        Some("ur_reboot"),
    ),
    hook(
        "machine_kexec",
        "the end of the old kernel",
        Some("u_jump"),
        None,
    ),
    hook(
        "luo_startup",
        "the start of the new kernel",
        Some("u_boot"),
        Some("ur_boot"),
    ),
];
