//! The socket of `lu run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lu_common::event::Record;
use lu_common::uapi::Interface;
use lu_user::attach::Attached;
use lu_user::orchestrator::Orchestrator;
use lu_user::socket::{self, HooksJson, Listener, MissingJson, Server, Status};
use nix::unistd::{Gid, Group};
use tokio::sync::Notify;

#[derive(clap::Args)]
pub struct SocketArgs {
    /// Where others can follow what is seen, as `lu trace --from-socket` does. It is root's, mode 0660; where it cannot be
    /// made lu says so and goes on without.
    #[arg(long, value_name = "PATH", default_value = socket::PATH)]
    socket: PathBuf,
    /// The group that may read it too, by name or number: it then sees every update, and whose files they are.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    socket_group: Option<Gid>,
    /// No socket.
    #[arg(long, conflicts_with_all = ["socket", "socket_group"])]
    no_socket: bool,
}

/// A group by its number or its name.
fn group(text: &str) -> Result<Gid, String> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err("there is no such group".to_owned()),
        Err(error) => Err(format!("the groups cannot be read: {error}")),
    }
}

/// The socket, as far as there is one.
#[derive(Default)]
pub struct Socket {
    /// Where it is to be, and for which group.
    wanted: Option<(PathBuf, Option<Gid>)>,
    listener: Option<Listener>,
    server: Option<Server>,
    hooks: HooksJson,
}

impl Socket {
    /// One that is still to be made.
    pub fn new(args: &SocketArgs) -> Self {
        let wanted = (!args.no_socket).then(|| (args.socket.clone(), args.socket_group));
        Self {
            wanted,
            ..Self::default()
        }
    }

    /// Makes it, with all privileges.
    pub fn bind(&mut self, attached: &Attached, orchestrators: &[Orchestrator]) {
        let Some((path, group)) = &self.wanted else {
            return;
        };
        match Listener::bind(path, *group) {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => eprintln!("lu: no socket: {error}"),
        }
        self.hooks = hooks(attached, orchestrators);
    }

    /// Answers, without them. What is notified when somebody wants to know a status.
    pub fn start(&mut self, folder: &Path, run: u64) -> Option<Arc<Notify>> {
        match Server::start(self.listener.take()?, folder, run) {
            Ok(server) => self.server = Some(server),
            Err(error) => eprintln!("lu: the socket answers nobody: {error}"),
        }
        self.server.as_ref().map(Server::asked)
    }

    /// Hands over what is in the journal's files; the first one has the number `first` in the run.
    pub fn push(&self, first: u64, records: &[Record]) {
        if let Some(server) = &self.server {
            server.push(first, records);
        }
    }

    /// The journal's files have got records of an earlier run.
    pub fn renew(&self) {
        if let Some(server) = &self.server {
            server.renew();
        }
    }

    /// Something has changed that a status tells of.
    pub fn ask(&self) {
        if let Some(server) = &self.server {
            server.asked().notify_one();
        }
    }

    /// Tells how `lu run` is, which `status` finds out.
    pub fn tell(&self, status: impl FnOnce(HooksJson) -> Status) {
        if let Some(server) = &self.server {
            server.tell(&status(self.hooks.clone()));
        }
    }

    /// The end.
    pub fn end(&mut self) {
        if let Some(server) = self.server.take() {
            server.end();
        }
        if let Some(listener) = self.listener.take() {
            listener.remove();
        }
    }
}

fn hooks(attached: &Attached, orchestrators: &[Orchestrator]) -> HooksJson {
    let is_kernel = orchestrators.contains(&Orchestrator::Kernel);
    let interface = attached.coverage.first().map(|outcome| outcome.interface);
    HooksJson {
        orchestrator: if is_kernel { "kernel" } else { "emulated" }.to_owned(),
        interface: interface
            .filter(|_| is_kernel)
            .map(|interface| Interface::name(interface).to_owned()),
        attached: attached.count() as u64,
        of: attached.coverage.len() as u64,
        missing: attached
            .missing()
            .map(|(hook, why)| MissingJson {
                function: hook.function.to_owned(),
                why: why.to_owned(),
                unknown: hook.tells.to_owned(),
            })
            .collect(),
    }
}
