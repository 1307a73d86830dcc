//! A side of a conversation in a process of its own, to be killed.
//!
//! The process gets its connected socket as standard input and prints its progress, so that the test knows within one
//! step what it had done when it died.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use super::plan::{Ending, Genre, Script};
use super::talk::{Count, Seen, talk_reporting};
use crate::process::Process;

/// A running side.
pub struct ChildPeer {
    child: Child,
    progress: BufReader<Box<dyn Read + Send>>,
    last: Seen,
    step: u64,
}

impl ChildPeer {
    /// Lets `program` (the `peer` binary of this package) play the `client` or `server` of `script` on `stream`.
    pub fn start(program: &str, stream: TcpStream, script: &Script, side: &str) -> Self {
        let mut command: Command = Process::command(program);
        let mut child = command
            .args([script.genre.word(), &script.seed.to_string(), side])
            .stdin(Stdio::from(OwnedFd::from(stream)))
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the peer");
        let output = child.stdout.take().expect("piped");
        let plan = if side == "client" {
            &script.client
        } else {
            &script.server
        };
        let step = plan.max_chunk as u64;
        Self {
            child,
            progress: BufReader::new(Box::new(output)),
            last: Seen::default(),
            step,
        }
    }

    /// Waits until it has written `written` bytes (or has ended by itself), then kills it. Returns what is known of it.
    pub fn kill_after(mut self, written: u64) -> Seen {
        while self.last.written.least < written && self.read_progress() {}
        self.child.kill().expect("kill a child of ours");
        let killed = self.child.wait().expect("wait for a child of ours").code().is_none();
        while self.read_progress() {}
        let mut seen = self.last;
        if killed {
            // One step may have gone unreported, and death ends the data like a close() does.
            seen.written.most += self.step;
            seen.read.most += self.step;
            seen.finished = true;
        }
        seen
    }

    /// Reads one line of progress; false at the end.
    fn read_progress(&mut self) -> bool {
        let mut line = String::new();
        if self.progress.read_line(&mut line).expect("read the peer's progress") == 0 {
            return false;
        }
        let mut words = line.split_whitespace();
        let mut number = || {
            words
                .next()
                .and_then(|word| word.parse().ok())
                .expect("the peer's progress")
        };
        self.last.written = Count::exactly(number());
        self.last.read = Count::exactly(number());
        self.last.eof = number() == 1;
        self.last.reset = number() == 1;
        self.last.finished = number() == 1;
        let faults = line.split_once('|').map(|(_, fault)| fault.trim().to_owned());
        self.last.faults = faults.into_iter().filter(|fault| !fault.is_empty()).collect();
        true
    }
}

/// The child's side: plays `side` of the script of `seed` on standard input.
pub fn run_child(genre: &str, seed: u64, side: &str) {
    let genre = Genre::of_word(genre).unwrap_or_else(|| panic!("not a genre: {genre}"));
    let script = Script::of(genre, seed);
    let plan = if side == "client" {
        &script.client
    } else {
        &script.server
    };
    assert!(
        matches!(plan.ending, Ending::Killed { .. }),
        "only a side that is to be killed needs a process of its own"
    );
    let stream = TcpStream::from(
        std::os::fd::AsFd::as_fd(&std::io::stdin())
            .try_clone_to_owned()
            .expect("dup"),
    );
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null").expect("/dev/null")).expect("dup2");
    let mut output = std::io::stdout();
    let mut print = |seen: &Seen| {
        let flags = [seen.eof, seen.reset, seen.finished].map(u8::from);
        let line = format!(
            "{} {} {} {} {} | {}\n",
            seen.written.least,
            seen.read.least,
            flags[0],
            flags[1],
            flags[2],
            seen.faults.join("; ")
        );
        // The parent may have gone; then so does this process.
        let _ = output.write_all(line.as_bytes());
    };
    let seen = talk_reporting(stream, plan, &mut print);
    print(&seen);
}
