//! Where the kernel keeps what the programs read: offsets that user space takes from the running
//! kernel's BTF and hands over as one read-only global. None is written down here.

use core::mem::size_of;

/// How many kinds of files can be told by the address of their `struct file_operations`.
pub const FILE_OPERATIONS_MAX: usize = 16;

/// The value of an offset that the running kernel's types do not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:literal, $path:expr;)* }) => {
        $(#[$of])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$doc])* pub $field: u32,)* }

        impl $name {
            /// Nothing is known.
            pub const NONE: Self = Self { $($field: ABSENT,)* };

            /// The structure and the member of each field, in the fields' order.
            pub const MEMBERS: &[(&str, &str)] = &[$(($type, $path),)*];

            /// Asks `find` for each member's offset; `None` becomes [`ABSENT`].
            #[must_use]
            pub fn read(find: impl Fn(&str, &str) -> Option<u32>) -> Self {
                Self { $($field: find($type, $path).unwrap_or(ABSENT),)* }
            }

            /// The offsets in the order of [`Self::MEMBERS`].
            #[must_use]
            pub const fn list(&self) -> [u32; size_of::<Self>() / 4] {
                [$(self.$field,)*]
            }
        }
    };
}

offsets! {
    /// Offsets of what the hooks read, in bytes.
    Offsets {
        /// The session's name.
        session_name: "luo_session", "name";
        /// The session's files, which the functions get instead of the session.
        session_file_set: "luo_session", "file_set";
        /// Of a session's file: the session.
        file_private_data: "file", "private_data";
        /// Tells the kind of file.
        file_f_op: "file", "f_op";
        /// The file's inode.
        file_f_inode: "file", "f_inode";
        /// Type and permissions.
        inode_i_mode: "inode", "i_mode";
        /// Size in bytes.
        inode_i_size: "inode", "i_size";
        /// Links; a memfd has none.
        inode_i_nlink: "inode", "i_nlink";
        /// The inode's file system.
        inode_i_sb: "inode", "i_sb";
        /// Which file system it is.
        sb_s_magic: "super_block", "s_magic";
        /// Of a callback's argument: the file.
        args_file: "liveupdate_file_op_args", "file";
        /// The name of a task.
        task_comm: "task_struct", "comm";
        /// Its credentials.
        task_cred: "task_struct", "cred";
        /// Of these, the real user in the initial user namespace.
        cred_uid: "cred", "uid";
        /// Of a system call's registers: the third argument.
        regs_third: "pt_regs", THIRD_ARGUMENT;
    }
}

offsets! {
    /// Offsets of what the policy's programs read beside [`Offsets`], in bytes.
    Asked {
        /// A task's open files.
        task_files: "task_struct", "files";
        /// Of these, the table.
        files_fdt: "files_struct", "fdt";
        /// Of the table, the files by descriptor.
        fdt_fd: "fdtable", "fd";
        /// How many descriptors it has room for.
        fdt_max_fds: "fdtable", "max_fds";
        /// A task's memory.
        task_mm: "task_struct", "mm";
        /// Of that, the executable.
        mm_exe_file: "mm_struct", "exe_file";
        /// A task's state in its life.
        task_flags: "task_struct", "flags";
        /// The user that it logged in as; absent in a kernel that keeps no audit.
        task_loginuid: "task_struct", "loginuid";
        /// The effective user in the initial user namespace.
        cred_euid: "cred", "euid";
        /// The effective group.
        cred_egid: "cred", "egid";
        /// An inode's number.
        inode_i_ino: "inode", "i_ino";
        /// Of a device's inode: which device.
        inode_i_rdev: "inode", "i_rdev";
        /// A file system's device.
        sb_s_dev: "super_block", "s_dev";
        /// The files of a session, oldest first.
        set_files_list: "luo_file_set", "files_list";
        /// Of one of these files, its place among them.
        luo_file_list: "luo_file", "list";
        /// And the file itself.
        luo_file_file: "luo_file", "file";
    }
}

/// Addresses and numbers that the policy's programs compare with; 0: unknown.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landmarks {
    /// `luo_fops`: the device's operations.
    pub device_operations: u64,
    /// `luo_session_fops`: a session's.
    pub session_operations: u64,
    /// `kexec_image`: where the pointer to the image is.
    pub kexec_image: u64,
    /// `/dev/liveupdate`, as the kernel numbers devices: major << 20 | minor.
    pub device: u32,
    /// `LOADING_KEXEC_IMAGE` (`enum kernel_load_data_id`), `READING_KEXEC_IMAGE` (`enum kernel_read_file_id`).
    pub kexec_image_id: u32,
}

/// The register of a system call's third argument, where user space is compiled for the machine.
const THIRD_ARGUMENT: &str = if cfg!(target_arch = "aarch64") {
    "regs[2]"
} else {
    "dx"
};
