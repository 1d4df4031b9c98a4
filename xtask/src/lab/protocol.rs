//! What the host tells the guest's init, and what init tells the host: both are built from this file.

use serde::{Deserialize, Serialize};

/// Where the plan is in the initramfs.
pub const PLAN: &str = "/lab.json";

/// The serial number of the disk with the files for the guest.
pub const DISK_IN: &str = "lu-in";

/// The serial number of the disk for what a boot, counted from 1, brings out.
pub fn disk_out(boot: usize) -> String {
    format!("lu-out{boot}")
}

/// Where, on the disk for the guest, the kernel and the initramfs are that kexec loads.
pub const KERNEL: &str = "boot/kernel";
/// See [`KERNEL`].
pub const INITRD: &str = "boot/initrd";

/// What init is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Kernel modules in the initramfs, in the order of loading.
    pub modules: Vec<String>,
    /// The command of the first boot's stage, and that of every later one's; without one the stage is left
    /// out.
    pub stages: [Option<Vec<String>>; 2],
    /// How many kexecs there are in a row: one boot more.
    pub kexecs: usize,
    /// Run `lu run` beside the stages, with these arguments more, and report at the end.
    pub lu: Option<Vec<String>>,
    /// Write the trace too, which takes its time where there are many events.
    pub with_trace: bool,
    /// The serial number of the disk that outlives the machine, where there is one: lu's journal is there.
    pub disk: Option<String>,
    /// A shell on the console in the place of the stages.
    pub shell: bool,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Status {
    /// Whether it ended well.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

/// A line on the second serial port, as one JSON object: init has done this.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A kernel is up, and the files are in place.
    Booted {
        /// Which, counted from 1.
        boot: usize,
        /// `uname -r`.
        release: String,
    },
    /// The kernel to jump into is loaded.
    Loaded,
    /// `lu run` has attached its hooks, and said this.
    Attached {
        /// Its line.
        line: String,
    },
    /// A stage's command runs.
    Started {
        /// The boot's number.
        stage: usize,
    },
    /// A stage's command has ended.
    Ended {
        /// The boot's number.
        stage: usize,
        /// How.
        status: Status,
    },
    /// init calls reboot(KEXEC).
    Jump,
    /// A program of lu's has ended.
    Lu {
        /// `run`, `report`, `history` or `trace`.
        command: String,
        /// How.
        status: Status,
        /// The end of what it said on standard error.
        said: String,
    },
    /// Something is not as wished, and the run goes on.
    Note {
        /// What.
        text: String,
    },
    /// Something that ends the run.
    Broken {
        /// What.
        text: String,
        /// lu's own doing, rather than the lab's.
        by_lu: bool,
    },
    /// All is done and brought out; the guest powers off.
    Done,
}
