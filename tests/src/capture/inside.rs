//! A process inside a pod (in its network namespace and its cgroup) that makes sockets there for the test.
//!
//! A request is three numbers of socket(2) in one packet, the answer a packet with the descriptor, or an errno.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;
use crate::process::{self, Process};

/// domain, type, protocol; or an errno and two zeros.
type Numbers = [i32; 3];

/// A place inside a pod: its network namespace and a cgroup of its own.
pub(crate) struct Inside {
    cgroup: PathBuf,
    keeper: Child,
    conversation: Mutex<OwnedFd>,
}

impl Inside {
    /// Starts the process in `namespace`, in `cgroup`.
    pub(crate) fn start(namespace: &Namespace, cgroup: &Path) -> Self {
        let (here, there) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair");
        let mut command = Process::command(&process::beside_test("inside").display().to_string());
        command.arg("keep");
        let mut command = enter(cgroup, &command);
        command.stdin(Stdio::from(there));
        let keeper = namespace.run(move || command.spawn()).expect("start the pod's keeper");
        Self {
            cgroup: cgroup.to_owned(),
            keeper,
            conversation: Mutex::new(here),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.keeper.id()
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A socket of the pod.
    pub(crate) fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let conversation = self.conversation.lock().expect("no holder panics");
        let numbers = [domain.into(), kind.into(), protocol.map_or(0, i32::from)];
        send_numbers(&*conversation, numbers, None).expect("ask the pod's keeper");
        match receive_numbers(&*conversation).expect("the pod's keeper answers") {
            Some((_, Some(socket))) => Ok(Socket::from(socket)),
            Some(([errno, ..], None)) => Err(io::Error::from_raw_os_error(errno)),
            None => panic!("the pod's keeper has gone"),
        }
    }

    /// `command`, started by whoever, in this cgroup.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        enter(&self.cgroup, command)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// `command` preceded by a move into `cgroup`, without anything on its standard input.
pub(super) fn enter(cgroup: &Path, command: &Command) -> Command {
    let mut inside = Command::new("sh");
    inside
        .args(["-c", r#"echo $$ >"$0" && exec "$@""#])
        .arg(cgroup.join("cgroup.procs"))
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    if let Some(folder) = command.get_current_dir() {
        inside.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// The process inside: makes sockets until nobody asks any more. The conversation is its standard input.
pub fn run_keeper() -> io::Result<()> {
    let conversation = io::stdin();
    while let Some(([domain, kind, protocol], _)) = receive_numbers(&conversation)? {
        let protocol = (protocol != 0).then(|| Protocol::from(protocol));
        match Socket::new(Domain::from(domain), Type::from(kind), protocol) {
            Ok(socket) => send_numbers(&conversation, [0; 3], Some(socket.into()))?,
            Err(error) => send_numbers(&conversation, [error.raw_os_error().unwrap_or(0), 0, 0], None)?,
        }
    }
    Ok(())
}

fn send_numbers(to: impl AsFd, numbers: Numbers, beside: Option<OwnedFd>) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        assert!(
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)),
            "there is room"
        );
    }
    sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// None at the end.
fn receive_numbers(from: impl AsFd) -> io::Result<Option<(Numbers, Option<OwnedFd>)>> {
    let mut bytes = [0; size_of::<Numbers>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let mut numbers = [0; 3];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(size_of::<i32>())) {
        *number = i32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(Some((numbers, descriptor)))
}
