//! One process that the bench started: its log, its ready line, what it costs, and its end.
//!
//! A dropped [`Process`] is killed and reaped. Its CPU time and memory are read from `/proc`, as any operator would.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Start-up of a proxy with an ordinary configuration; Envoy takes about half a second on a quiet machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running child, killed when dropped.
pub(crate) struct Process {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard error going to `log` and standard output to us.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Process> {
        let stderr = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let output = child.stdout.take().map(BufReader::new);
        Ok(Process {
            child,
            output,
            log: log.to_path_buf(),
        })
    }

    /// Starts a proxy: a program that says everything into its log and is ready when it listens.
    pub(crate) fn start_proxy(mut command: Command, log: &Path, port: u16) -> Result<Process> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut process = Process {
            child,
            output: None,
            log: log.to_path_buf(),
        };
        process.wait_until(&format!("listen on port {port}"), START_DEADLINE, |process| {
            process.listens_on(port)
        })?;
        Ok(process)
    }

    /// Waits until `condition` holds, the process ends (an error) or `deadline` has passed (an error).
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&Process) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        while !condition(self)? {
            if let Some(status) = self.child.try_wait()? {
                bail!("process ended ({status}) before it came to {what}{}", self.log_tail());
            }
            if start.elapsed() > deadline {
                bail!("process did not come to {what} within {deadline:?}{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits for one line on standard output, which is how our own subcommands say that they are ready.
    pub(crate) fn line(&mut self) -> Result<String> {
        let output = self.output.as_mut().context("process without standard output")?;
        let mut line = String::new();
        if output.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            bail!("process ended ({status}) instead of getting ready{}", self.log_tail());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Ends standard input, which tells our own subcommands to finish, and returns what they print.
    pub(crate) fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        if let Some(output) = self.output.as_mut() {
            output.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("process failed ({status}){}", self.log_tail());
        }
        Ok(text)
    }

    /// Asks it to end (SIGINT) and waits until it has.
    pub(crate) fn interrupt(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        self.child.wait()?;
        Ok(())
    }

    /// Path of the network namespace this process is in.
    pub(crate) fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.child.id()).into()
    }

    /// Process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time used so far, user and system, all threads. Granularity: one clock tick (10 ms).
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).context("the process is gone")?;
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
        let ticks = cpu_ticks(&stat).with_context(|| format!("unreadable stat line {stat:?}"))?;
        Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
    }

    /// A memory figure of `/proc/PID/status` in kB, such as `VmRSS` or `VmHWM`.
    pub(crate) fn memory_kb(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).context("the process is gone")?;
        kilobytes(&status, field).with_context(|| format!("no {field} in /proc/{}/status", self.child.id()))
    }

    /// Resident memory in kB once it has stopped moving (within 0.5 % for half a second), at most 15 s from now.
    pub(crate) fn settled_rss_kb(&self) -> Result<u64> {
        let start = Instant::now();
        let mut last = self.memory_kb("VmRSS")?;
        while start.elapsed() < Duration::from_secs(15) {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.memory_kb("VmRSS")?;
            if now.abs_diff(last) * 200 <= last {
                return Ok(now);
            }
            last = now;
        }
        Ok(last)
    }

    fn listens_on(&self, port: u16) -> Result<bool> {
        for table in ["tcp", "tcp6"] {
            // The table can be missing (no IPv6) or the process be gone, which `wait_until` finds out.
            let sockets = fs::read_to_string(format!("/proc/{}/net/{table}", self.child.id())).unwrap_or_default();
            if has_listener(&sockets, port) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(8)..];
        if tail.is_empty() {
            return format!("; nothing in its log {}", self.log.display());
        }
        format!("; end of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User plus system clock ticks of a `/proc/PID/stat` line (fields 14 and 15; proc(5)).
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The command name may hold spaces and parentheses: count from the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The value of a `Field:   123 kB` line.
pub(crate) fn kilobytes(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(field)?
            .strip_prefix(':')?
            .trim()
            .strip_suffix(" kB")
            .and_then(|value| value.parse().ok())
    })
}

/// Whether a `/proc/PID/net/tcp` table has a socket in LISTEN (state 0A) on `port`.
fn has_listener(table: &str, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        local.ends_with(&suffix) && fields.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_survive_a_command_name_with_spaces_and_parentheses() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 3 0 100 1 2";
        assert_eq!(cpu_ticks(stat), Some(12));
    }

    #[test]
    fn a_listener_is_told_from_a_connection_on_the_same_port() {
        let connected = "  sl  local_address rem_address   st\n   0: 0100007F:2329 0100007F:9C40 01 0:0";
        let listening = "   1: 00000000:2329 00000000:0000 0A 0:0";
        assert!(!has_listener(connected, 9001));
        assert!(has_listener(&format!("{connected}\n{listening}"), 9001));
        assert!(!has_listener(listening, 9002));
    }

    #[test]
    fn memory_fields_are_matched_whole() {
        let status = "VmRSSx:\t    9 kB\nVmRSS:\t    1234 kB\n";
        assert_eq!(kilobytes(status, "VmRSS"), Some(1234));
        assert_eq!(kilobytes(status, "VmHWM"), None);
    }
}
