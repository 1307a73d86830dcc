//! Joining four sockets to a flow.
//!
//! All four are looked at before one is inserted, and each again as it is inserted. Until the proxy arms the flow
//! nothing is redirected, so that what has been inserted can be taken back without loss.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use underpass_ebpf_abi::tier::{self as abi, JoinCall, Outcome, Way};
use underpass_ebpf_abi::to_bytes;

use super::{NotJoined, Side, Ticket, Variant};
use crate::bpf::test_run;
use crate::socket;

/// A flow to join. The proxy reads from neither socket, and has handed on all that it read. Whoever asks is in an
/// exempt cgroup: others are not told the true addresses of captured sockets.
#[derive(Clone, Copy, Debug)]
pub struct JoinRequest<'a> {
    /// The proxy's socket towards the client.
    pub downstream: BorrowedFd<'a>,
    /// The proxy's socket towards the server.
    pub upstream: BorrowedFd<'a>,
    /// The network namespace of the client's socket.
    pub client_netns: BorrowedFd<'a>,
    /// The network namespace of the server's socket.
    pub server_netns: BorrowedFd<'a>,
    /// A message passes by only while no more bytes than this wait at its receiver. Where the receiver's socket has
    /// small buffers, it is less.
    pub limit: u32,
    /// Another variant than the one that the self-test chose.
    pub variant: Option<Variant>,
}

/// One of the four.
#[derive(Clone, Copy, Debug)]
struct Socket {
    side: Side,
    role: u32,
    key: u64,
    netns: usize,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Socket {
    fn refusal(&self, call: &JoinCall) -> NotJoined {
        let (side, outcome) = (self.side, Outcome::of(call.outcome));
        if self.role == abi::APPLICATION {
            NotJoined::Application { side, outcome }
        } else {
            NotJoined::Hop { side, outcome }
        }
    }
}

/// The thread, in the network namespaces of a flow one after the other.
struct Journey {
    home: File,
    namespaces: [OwnedFd; 4],
    inodes: [u64; 4],
    /// Inode of the namespace in which the thread is.
    at: u64,
    has_left: bool,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;
const DOWNSTREAM: usize = 2;
const UPSTREAM: usize = 3;

impl Journey {
    fn new(request: &JoinRequest<'_>) -> io::Result<Self> {
        let namespaces = [
            request.client_netns.try_clone_to_owned()?,
            request.server_netns.try_clone_to_owned()?,
            socket::netns(request.downstream)?,
            socket::netns(request.upstream)?,
        ];
        let mut inodes = [0; 4];
        for (inode, namespace) in inodes.iter_mut().zip(&namespaces) {
            *inode = rustix::fs::fstat(namespace)?.st_ino;
        }
        let home = File::open("/proc/thread-self/ns/net")?;
        let at = home.metadata()?.ino();
        Ok(Self {
            home,
            namespaces,
            inodes,
            at,
            has_left: false,
        })
    }

    fn go(&mut self, namespace: usize) -> io::Result<()> {
        let there = self.inodes[namespace];
        if self.at != there {
            self.has_left = true;
            move_into_link_name_space(self.namespaces[namespace].as_fd(), Some(LinkNameSpaceType::Network))?;
            self.at = there;
        }
        Ok(())
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        if !self.has_left {
            return;
        }
        // Nothing of what this thread would do elsewhere could be right.
        move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("a thread comes back to the network namespace that it came from");
    }
}

/// What is needed to join a flow.
pub(super) struct Joining<'a> {
    program: BorrowedFd<'a>,
    ticket: Ticket,
    limit: u32,
    variant: Variant,
    journey: Journey,
    sockets: [Socket; 4],
}

impl<'a> Joining<'a> {
    pub(super) fn new(
        program: BorrowedFd<'a>,
        request: &JoinRequest<'_>,
        ticket: Ticket,
        variant: Variant,
    ) -> Result<Self, NotJoined> {
        let system = |action| move |source| NotJoined::System { action, source };
        let [downstream, upstream] = [request.downstream, request.upstream].map(ends);
        let downstream = downstream.map_err(system("ask for the addresses of the proxy's sockets"))?;
        let upstream = upstream.map_err(system("ask for the addresses of the proxy's sockets"))?;
        let socket = |which, side, role, netns, (local, remote)| Socket {
            side,
            role,
            key: abi::key(ticket.index, ticket.generation, which),
            netns,
            local,
            remote,
        };
        let turned = |(local, remote)| (remote, local);
        Ok(Self {
            program,
            ticket,
            limit: request.limit,
            variant,
            journey: Journey::new(request).map_err(system("visit network namespaces"))?,
            sockets: [
                socket(abi::CLIENT, Side::Client, abi::APPLICATION, CLIENT, turned(downstream)),
                socket(abi::SERVER, Side::Server, abi::APPLICATION, SERVER, turned(upstream)),
                socket(abi::DOWNSTREAM, Side::Client, abi::HOP, DOWNSTREAM, downstream),
                socket(abi::UPSTREAM, Side::Server, abi::HOP, UPSTREAM, upstream),
            ],
        })
    }

    /// Looks at all sockets, then inserts them, and says how much may wait at the server and at the client. `undo` is given the key
    /// of each that was inserted when a later one is refused.
    pub(super) fn run(mut self, mut undo: impl FnMut(u64)) -> Result<[u32; 2], NotJoined> {
        let calls = self.look()?;
        let rooms = [SERVER, CLIENT].map(|receiver| calls[receiver].room);
        let mut inserted = Vec::with_capacity(calls.len());
        for (socket, mut call) in self.sockets.into_iter().zip(calls) {
            if let Err(refusal) = self.ask(&socket, &mut call) {
                inserted.into_iter().rev().for_each(&mut undo);
                return Err(refusal);
            }
            inserted.push(socket.key);
        }
        Ok(rooms)
    }

    /// The calls that will insert the sockets: first the applications', since a hop is no use before them.
    fn look(&mut self) -> Result<[JoinCall; 4], NotJoined> {
        let sockets = self.sockets;
        let mut seen = [JoinCall::default(); 4];
        // The hops first: an application has read everything when it has read all that its hop has written.
        for which in [DOWNSTREAM, UPSTREAM, CLIENT, SERVER] {
            let socket = &sockets[which];
            seen[which] = JoinCall {
                local: to_bytes(socket.local.ip().to_canonical()),
                remote: to_bytes(socket.remote.ip().to_canonical()),
                local_port: socket.local.port(),
                remote_port: socket.remote.port(),
                action: abi::CHECK,
                key: socket.key,
                read_up_to: seen[hop_of(which)].write_seq,
                way: Way {
                    role: socket.role,
                    ..Way::default()
                },
                ..JoinCall::default()
            };
            self.ask(socket, &mut seen[which])?;
        }
        let mut calls = seen;
        for (which, call) in calls.iter_mut().enumerate() {
            let receiver = receiver_of(which);
            call.action = abi::INSERT;
            call.way = Way {
                receiver_key: sockets[receiver].key,
                receiver: seen[receiver].socket,
                receiver_cookie: seen[receiver].cookie,
                index: self.ticket.index,
                generation: self.ticket.generation,
                role: sockets[which].role,
                direction: if receiver == SERVER { abi::OUT } else { abi::IN },
                // What the sender sends and the hop next to it will read.
                first: seen[hop_of(which)].copied_seq,
                limit: self.limit.min(seen[receiver].room),
                variant: self.variant.number(),
                ..Way::default()
            };
        }
        Ok(calls)
    }

    fn ask(&mut self, socket: &Socket, call: &mut JoinCall) -> Result<(), NotJoined> {
        let asked = self
            .journey
            .go(socket.netns)
            .and_then(|()| test_run::call(self.program, call));
        asked.map_err(|source| NotJoined::System {
            action: "run the program that joins sockets",
            source,
        })?;
        if call.outcome == Outcome::Done as u32 {
            Ok(())
        } else {
            Err(socket.refusal(call))
        }
    }
}

/// The proxy's socket at the other end of an application's connection; of a hop itself.
fn hop_of(which: usize) -> usize {
    match which {
        CLIENT | DOWNSTREAM => DOWNSTREAM,
        _ => UPSTREAM,
    }
}

/// Who receives what a socket sends.
fn receiver_of(which: usize) -> usize {
    match which {
        CLIENT | UPSTREAM => SERVER,
        _ => CLIENT,
    }
}

/// A socket's own address and its peer's.
fn ends(socket: BorrowedFd<'_>) -> io::Result<(SocketAddr, SocketAddr)> {
    let not_ip = |_| io::Error::other(format!("descriptor {} is no TCP socket", socket.as_raw_fd()));
    let local = rustix::net::getsockname(socket)?;
    let remote = rustix::net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok((local.try_into().map_err(not_ip)?, remote.try_into().map_err(not_ip)?))
}
