//! The durable record of updates, in a folder: the [records](segment) themselves, and the [history] of the
//! updates that have ended. `lu run` [keeps](keep) it, and [`read`] tells what is there.

use std::io;
use std::path::{Path, PathBuf};

pub mod boot;
pub mod clocks;
mod context;
pub mod counter;
pub mod history;
pub mod keep;
mod packed;
pub mod read;
pub mod recorder;
pub mod refusals;
pub mod segment;
pub mod tape;

pub use keep::{Journal, Retention};
pub use read::Reader;

/// Where the journal is unless told otherwise.
pub const FOLDER: &str = "/var/lib/lu";

/// What goes wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a step.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a journal of lu's; nothing was changed", .0.display())]
    Foreign(PathBuf),
    /// Another version wrote it.
    #[error(
        "{} is a journal of version {version}, and this lu reads version {ours}; read it with the \
         lu that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The version that this lu reads.
        ours: u32,
    },
    /// Root without privileges is an ordinary user there.
    #[error(
        "{} belongs to user {owner}, and lu gives its privileges up before it writes; choose a folder of \
         your own, or chown this one",
        path.display()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Two would not keep apart what they number.
    #[error(
        "another lu writes the journal in {}; stop that one, or give this one a folder of its own with --journal",
        .0.display()
    )]
    Taken(PathBuf),
    /// The limit is too low to work with.
    #[error("a journal takes at least {}, not {}", bytesize::ByteSize(keep::LEAST), bytesize::ByteSize(*.0))]
    TooSmall(u64),
    /// There is nothing to read.
    #[error("no journal in {}; `lu run --journal DIR` writes one", .0.display())]
    Empty(PathBuf),
    /// The history cannot be read.
    #[error(transparent)]
    History(#[from] history::Error),
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |error| Error::Io {
        action,
        path: path.into(),
        error,
    }
}
