//! A proxy that says one word to every connection.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use underpass::handover::{self, Family, FromAgent, FromProxy, VERSION};

use crate::harness::Node;

#[derive(Default)]
struct Seen {
    pods: HashMap<u64, Arc<Vec<TcpListener>>>,
    sockets: usize,
    drained: bool,
}

/// Connected to the agent; gone when dropped.
pub struct Toy {
    socket: Arc<OwnedFd>,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Toy {
    /// Says Hello, and serves what it is told of.
    pub fn connect(node: &Node) -> Result<Self, String> {
        let socket = Arc::new(hello(&node.run_dir().join("agent.sock")));
        let (message, maps) = handover::receive::<FromAgent>(&socket).map_err(|error| error.to_string())?;
        match message {
            FromAgent::Welcome { tier_off, .. } => assert_eq!(maps.len(), if tier_off.is_some() { 2 } else { 4 }),
            FromAgent::Refused { reason } => return Err(reason),
            other => panic!("{other:?}"),
        }
        let seen = Arc::default();
        let thread = {
            let (socket, seen) = (socket.clone(), Arc::clone(&seen));
            thread::spawn(move || converse(&socket, &seen))
        };
        Ok(Self {
            socket,
            seen,
            thread: Some(thread),
        })
    }

    /// What a process of another cgroup is told: this program, started there, says Hello.
    pub fn refused_in(node: &Node, cgroup: &Path) -> String {
        let test = ["--exact", "toy::says_hello_from_another_cgroup", "--nocapture"];
        let enter = "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"";
        let output = Command::new("bash")
            .args(["-c", enter, "toy"])
            .arg(cgroup)
            .arg(std::env::current_exe().unwrap())
            .args(test)
            .env("UNDERPASS_TOY", node.run_dir().join("agent.sock"))
            .stderr(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn pods(&self) -> usize {
        self.seen.0.lock().unwrap().pods.len()
    }

    pub fn is_drained(&self) -> bool {
        self.seen.0.lock().unwrap().drained
    }

    pub fn wants_sockets_and_gets(&self, count: u32) {
        let cookie = *self.seen.0.lock().unwrap().pods.keys().next().unwrap();
        let family = Family::V4;
        let before = self.seen.0.lock().unwrap().sockets;
        handover::send(&self.socket, &FromProxy::WantSockets { cookie, family, count }, &[]).unwrap();
        let seen = self.seen.0.lock().unwrap();
        let wanted = before + count as usize;
        let (seen, time) = (self.seen.1)
            .wait_timeout_while(seen, Duration::from_secs(5), |seen| seen.sockets < wanted)
            .unwrap();
        assert!(!time.timed_out(), "{} sockets", seen.sockets);
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.socket, Shutdown::Both);
        let _ = self.thread.take().unwrap().join();
    }
}

fn hello(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let build = "toy".to_owned();
    let version = VERSION;
    handover::send(&socket, &FromProxy::Hello { version, build }, &[]).unwrap();
    socket
}

fn converse(socket: &OwnedFd, seen: &(Mutex<Seen>, Condvar)) {
    let mut acceptors = Vec::new();
    while let Ok((message, descriptors)) = handover::receive::<FromAgent>(socket) {
        match message {
            FromAgent::PodAdded(pod) => {
                assert_eq!(descriptors.len(), pod.outbound.len() + pod.inbound.len());
                let listeners: Arc<Vec<TcpListener>> =
                    Arc::new(descriptors.into_iter().map(TcpListener::from).collect());
                seen.0.lock().unwrap().pods.insert(pod.cookie, listeners.clone());
                let alive = Arc::downgrade(&listeners);
                drop(listeners);
                acceptors.push(thread::spawn(
                    move || while alive.upgrade().is_some_and(|all| accept(&all)) {},
                ));
                handover::send(socket, &FromProxy::Ready { cookie: pod.cookie }, &[]).unwrap();
            }
            FromAgent::PodRemoved { cookie } => drop(seen.0.lock().unwrap().pods.remove(&cookie)),
            FromAgent::Sockets { .. } => seen.0.lock().unwrap().sockets += descriptors.len(),
            FromAgent::Drain => {
                let mut seen = seen.0.lock().unwrap();
                seen.drained = true;
                seen.pods.clear();
            }
            FromAgent::Synced => {}
            other => panic!("{other:?}"),
        }
        seen.1.notify_all();
    }
    seen.0.lock().unwrap().pods.clear();
    acceptors.into_iter().for_each(|acceptor| acceptor.join().unwrap());
}

/// Answers who waits now, or comes soon.
fn accept(listeners: &[TcpListener]) -> bool {
    let mut waiting: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|listener| PollFd::new(listener, PollFlags::IN))
        .collect();
    let soon = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    poll(&mut waiting, Some(&soon)).unwrap();
    let ready: Vec<bool> = waiting.iter().map(|one| !one.revents().is_empty()).collect();
    for (listener, _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
        // Another proxy may have been faster.
        let accepted = rustix::net::accept_with(listener.as_fd(), SocketFlags::CLOEXEC);
        if let Ok(accepted) = accepted {
            let mut accepted = std::net::TcpStream::from(accepted);
            let _ = accepted.write_all(b"toy\n");
            let _ = accepted.shutdown(std::net::Shutdown::Write);
        }
    }
    true
}

/// Not a test of its own: see [`Toy::refused_in`].
#[test]
fn says_hello_from_another_cgroup() {
    let Some(path) = std::env::var_os("UNDERPASS_TOY") else {
        return;
    };
    let socket = hello(Path::new(&path));
    match handover::receive::<FromAgent>(&socket).unwrap().0 {
        FromAgent::Refused { reason } => println!("{reason}"),
        other => println!("not refused: {other:?}"),
    }
    let _ = std::io::stdin().read(&mut []);
}
