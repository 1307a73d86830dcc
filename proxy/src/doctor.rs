//! `underpass doctor`: what this node can do for capture, found out by trying, and who else is attached where we would be.
//!
//! It trusts no version number: each program is loaded, the hooks are asked who sits on them. A finding says what was found, and
//! where something is wrong, what follows from it and what to do.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::Serialize;
use underpass_ebpf::doctor::{Foreign, Trial, foreign_lookups};
use underpass_ebpf::mounts_of;
use underpass_ebpf::tier::{Variant, self_test};

use crate::agent::commands::enrolled;

/// Capabilities by their numbers in `capability.h`.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// As it should be.
    Good,
    /// Capture works, with less.
    Warning,
    /// Capture does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How it is.
    pub grade: Grade,
    /// What was found, and what to do about it.
    pub text: String,
}

/// All findings, in the order in which they were made.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether pods can be captured here.
    pub capture: bool,
    /// How flows between local sockets would be moved to the kernel (`plain`, `verdict`); `None`: they stay with the proxy.
    pub kernel_tier: Option<&'static str>,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Looks at this node. `cgroup` is where programs would be attached (the root of the hierarchy if it is not given), `run_dir` where an
    /// agent has its state.
    pub fn make(cgroup: Option<&Path>, pin_dir: &Path, run_dir: &Path) -> Self {
        let mut report = Self {
            capture: true,
            kernel_tier: None,
            findings: Vec::new(),
        };
        report.look_at_privileges();
        let hierarchy = report.look_at_cgroups(cgroup);
        report.look_at_bpffs();
        report.try_programs();
        if let Some(cgroup) = &hierarchy {
            report.look_for_others(cgroup, pin_dir);
        }
        report.look_into_pods(pin_dir, run_dir);
        report.try_redirection();
        report.look_at_capture(pin_dir);
        report
    }

    fn add(&mut self, subject: impl Into<String>, grade: Grade, text: impl Into<String>) {
        self.capture &= grade != Grade::Bad;
        self.findings.push(Finding {
            subject: subject.into(),
            grade,
            text: text.into(),
        });
    }

    fn look_at_privileges(&mut self) {
        let held = effective_capabilities();
        let missing: Vec<&str> = CAPABILITIES
            .iter()
            .filter(|(_, number)| held & (1 << number) == 0)
            .map(|(name, _)| *name)
            .collect();
        if missing.is_empty() {
            self.add(
                "privileges",
                Grade::Good,
                "CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN are held",
            );
        } else {
            let text = format!("{} missing; run doctor, and the agent, as root", missing.join(", "));
            self.add("privileges", Grade::Bad, text);
        }
    }

    fn look_at_cgroups(&mut self, cgroup: Option<&Path>) -> Option<PathBuf> {
        let mounts = mounts_of("cgroup2");
        if mounts.is_empty() {
            let text = "no cgroup2 is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified";
            self.add("cgroup2", Grade::Bad, text);
            return None;
        }
        let found: Vec<String> = mounts.iter().map(|mount| mount.display().to_string()).collect();
        let at = cgroup.map_or_else(|| mounts[0].clone(), Path::to_path_buf);
        if at.join("cgroup.procs").exists() {
            let text = format!(
                "mounted at {}; programs are attached at {}",
                found.join(" and "),
                at.display()
            );
            self.add("cgroup2", Grade::Good, text);
            Some(at)
        } else {
            let text = format!(
                "{} is no cgroup of the hierarchy at {}; choose another with --cgroup",
                at.display(),
                found.join(" or ")
            );
            self.add("cgroup2", Grade::Bad, text);
            None
        }
    }

    fn look_at_bpffs(&mut self) {
        match mounts_of("bpf").first() {
            Some(mount) => self.add("bpffs", Grade::Good, format!("mounted at {}", mount.display())),
            None => self.add("bpffs", Grade::Good, "not mounted; the agent mounts it at /sys/fs/bpf"),
        }
    }

    fn try_programs(&mut self) {
        match underpass_ebpf::doctor::trials() {
            Ok(trials) => trials.into_iter().for_each(|trial| self.add_trial(trial)),
            Err(error) => self.add("eBPF", Grade::Bad, error.to_string()),
        }
    }

    fn add_trial(&mut self, trial: Trial) {
        let subject = format!("program {}", trial.name);
        match trial.failure {
            None => self.add(subject, Grade::Good, "loads"),
            Some(failure) if trial.optional => self.add(subject, Grade::Warning, failure),
            Some(failure) => self.add(subject, Grade::Bad, failure),
        }
    }

    fn look_for_others(&mut self, cgroup: &Path, pin_dir: &Path) {
        match underpass_ebpf::doctor::foreign_programs(cgroup, pin_dir) {
            Ok(foreign) if foreign.is_empty() => {
                let text = format!("nobody else has programs on the hooks of {}", cgroup.display());
                self.add("other programs", Grade::Good, text);
            }
            Ok(foreign) => foreign.iter().for_each(|other| self.add_foreign(other)),
            Err(error) => self.add("other programs", Grade::Warning, error.to_string()),
        }
    }

    fn add_foreign(&mut self, other: &Foreign) {
        let name = if other.name.is_empty() {
            "without a name"
        } else {
            &other.name
        };
        let place = if other.direct { "this cgroup" } else { "a cgroup above" };
        let subject = format!("other program on {}", other.hook);
        let who = format!("{name} (id {}) at {place}", other.id);
        if other.before_ours == Some(true) && other.hook.starts_with("connect") {
            let text = format!(
                "{who} runs before ours: where it rewrites a service's address to a backend's, we see the backend, and what is configured for the \
                 service does not apply; attach at the pods' own parent cgroup (--cgroup), whose programs run first, or take it away \
                 (bpftool cgroup detach)"
            );
            self.add(subject, Grade::Warning, text);
        } else {
            self.add(subject, Grade::Good, format!("{who}; it does not run before ours"));
        }
    }

    /// Who else chooses the sockets for connections to enrolled pods.
    fn look_into_pods(&mut self, pin_dir: &Path, run_dir: &Path) {
        let pods = match enrolled(run_dir) {
            Ok(pods) => pods,
            Err(error) => return self.add("enrolled pods", Grade::Warning, error.to_string()),
        };
        for pod in pods {
            let subject = format!("pod {}", pod.uid);
            match foreign_lookups(pod.namespace.as_fd(), pod.cookie, pin_dir) {
                Ok(others) if others.is_empty() => self.add(
                    subject,
                    Grade::Good,
                    "nobody else chooses sockets in its network namespace",
                ),
                Ok(others) => {
                    let names: Vec<String> = others
                        .iter()
                        .map(|other| format!("{:?} (id {})", other.name, other.id))
                        .collect();
                    let text = format!(
                        "{} also choose sockets in its network namespace (sk_lookup) and may lead connections past the proxy; detach them \
                         (bpftool link detach), or do without capture for this pod",
                        names.join(" and ")
                    );
                    self.add(subject, Grade::Warning, text);
                }
                Err(error) => self.add(subject, Grade::Warning, error.to_string()),
            }
        }
    }

    /// What this kernel makes of bytes that go from socket to socket. Where it is wrong, capture works with less.
    fn try_redirection(&mut self) {
        let test = self_test();
        self.kernel_tier = test.choice().map(Variant::name);
        for variant in Variant::ALL {
            let subject = format!("kernel tier, variant {}", variant.name());
            let failures: Vec<String> = test
                .trials
                .iter()
                .filter(|trial| trial.variant == variant)
                .filter_map(|trial| Some(format!("{}: {}", trial.behaviour, trial.failure.as_ref()?)))
                .collect();
            match test.is_fit(variant) {
                true => self.add(subject, Grade::Good, "behaves as applications expect"),
                false => self.add(subject, Grade::Warning, format!("is not used; {}", failures.join("; "))),
            }
        }
        let text = match self.kernel_tier {
            Some(variant) => {
                format!("flows between sockets of this node can be moved to the kernel (variant {variant})")
            }
            None => "every byte goes through the proxy on this kernel".to_owned(),
        };
        self.add("kernel tier", Grade::Good, text);
    }

    fn look_at_capture(&mut self, pin_dir: &Path) {
        let pods = std::fs::read_dir(pin_dir.join("pods")).map_or(0, |pods| pods.flatten().count());
        let text = if pin_dir.join("maps").exists() {
            format!("in force, pinned in {}, {pods} pods enrolled", pin_dir.display())
        } else {
            format!(
                "not in force: nothing is pinned in {}; start it with `underpass agent`",
                pin_dir.display()
            )
        };
        self.add("capture", Grade::Good, text);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { subject, grade, text } in &self.findings {
            let mark = match grade {
                Grade::Good => "ok  ",
                Grade::Warning => "warn",
                Grade::Bad => "bad ",
            };
            writeln!(f, "{mark}  {subject}: {text}")?;
        }
        f.write_str(if self.capture {
            "pods can be captured here"
        } else {
            "pods cannot be captured here"
        })
    }
}

fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    held.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}
