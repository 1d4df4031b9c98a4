//! The flight recorder in a service manager's store of descriptors, with a service manager that is played here.
//!
//! The environment tells a service where its manager is, and belongs to a whole process: so this program
//! starts itself as the service, once in the old kernel and once in the new one.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use lu_common::event::{Kind, Record};
use lu_user::journal::recorder::{Place, Recorder, recover};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

const ROLE: &str = "LU_TEST_SERVICE";

/// What the service does; nothing where this is not the service.
#[test]
fn service() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let go_on = AtomicBool::new(false);
    if role == "old" {
        let mut recorder =
            Recorder::create(Place::Store, 7, 1 << 20, folder.path(), &go_on).expect("a recorder");
        for t_ns in 1..=3 {
            recorder.append(&Record::made(Kind::Open, t_ns, [0; 64]));
        }
        return;
    }
    let found: Vec<_> = recover(folder.path(), &go_on)
        .into_iter()
        .filter_map(Result::ok)
        .collect();
    assert_eq!(found.len(), 1);
    for found in found {
        assert_eq!(found.place, Place::Store);
        let recovered = found.contents.as_ref().expect("a recorder");
        let times: Vec<u64> = recovered
            .records
            .iter()
            .map(|(_, record)| record.header.t_ns)
            .collect();
        assert_eq!((recovered.run, times), (7, vec![1, 2, 3]));
        found.release().expect("told");
    }
}

/// This program as the service, in this role.
fn started(role: &str, manager: &Path, store: Option<&File>) {
    // The shell knows the process's id, which the service is told; 3 is the first descriptor that is passed.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "LISTEN_PID=$$ exec \"$0\" --exact service --nocapture 3<&0",
        ])
        .arg(std::env::current_exe().expect("this program"))
        .env(ROLE, role)
        .env("NOTIFY_SOCKET", manager);
    if let Some(store) = store {
        command
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "lu-recorder")
            .stdin(store.try_clone().expect("another"));
    }
    let status = command.status().expect("sh starts");
    assert!(status.success(), "the service in role {role}: {status}");
}

/// A message to the service manager, and the descriptor that came with it.
fn heard(manager: &UnixDatagram) -> (String, Option<File>) {
    let mut text = [0; 4096];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<()>(
        manager.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )
    .expect("a message");
    let mut file = None;
    for control in message.cmsgs().expect("whole") {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just opened it for this process, and nobody else knows it.
                file = Some(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    let length = message.bytes;
    let text = String::from_utf8(text[..length].to_vec()).expect("text");
    (text, file)
}

#[test]
fn a_recorder_in_a_service_managers_store_is_found_again_and_then_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    started("old", &path, None);
    let (told, store) = heard(&manager);
    assert_eq!(told, "FDSTORE=1\nFDNAME=lu-recorder\n");
    let store = store.expect("a descriptor");
    // Here the manager would take it over the kexec.
    started("new", &path, Some(&store));
    let (told, none) = heard(&manager);
    assert_eq!(told, "FDSTOREREMOVE=1\nFDNAME=lu-recorder\n");
    assert!(none.is_none());
}

#[test]
fn without_a_service_manager_there_is_no_store() {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let made = Recorder::create(
        Place::Store,
        7,
        1 << 20,
        folder.path(),
        &AtomicBool::new(false),
    );
    let why = made.map(|_| ()).expect_err("no store").to_string();
    assert!(why.contains("FileDescriptorStoreMax="), "{why}");
}
