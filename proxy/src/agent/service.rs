//! Working with proxies: who is worked with, who serves which pod, and what becomes of pods that nobody serves.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Agent;
use super::cgroups::{self, CgroupError};
use super::joining::Joiner;
use super::namespace::Identity;
use super::proxies::{Admitted, Proxy, ProxyId};
use crate::handover::{FromAgent, FromProxy, VERSION};

/// Why a proxy is not worked with.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "it speaks version {0} of the protocol, and this agent version {VERSION}; run an agent and a proxy that work together"
    )]
    Version(u32),
    #[error("it is in cgroup {}, where every other process would go past the proxy too; start it with --own-cgroup", .0.display())]
    SharedCgroup(PathBuf),
    #[error(
        "its cgroup {} holds process {pid} of an enrolled pod, which would go past the proxy too; start it with --own-cgroup",
        cgroup.display()
    )]
    PodsCgroup { cgroup: PathBuf, pid: u32 },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("its cgroup cannot be looked at: {0}")]
    CgroupId(std::io::Error),
    #[error("it cannot be let past the kernel's programs: {0}")]
    Kernel(#[from] underpass_ebpf::Error),
}

impl Agent {
    /// Takes up a connection; what it is worth is decided at its `Hello`.
    pub(super) fn meet_proxy(&mut self, socket: OwnedFd, pid: u32) {
        self.next_proxy += 1;
        let id = self.next_proxy;
        let met = Proxy::new(socket, pid).and_then(|mut proxy| {
            proxy.listen(id, &self.services, &self.sender)?;
            Ok(proxy)
        });
        match met {
            Ok(proxy) => drop(self.proxies.insert(id, proxy)),
            Err(error) => tracing::error!(pid, %error, "a proxy could not be listened to"),
        }
    }

    /// Takes a proxy's word.
    pub(super) fn hear_proxy(&mut self, id: ProxyId, message: FromProxy) {
        let Some(proxy) = self.proxies.get(&id) else { return };
        match message {
            FromProxy::Hello { version, build } if proxy.admitted.is_none() => match self.admit(id, version, build) {
                Ok(()) => self.welcome(id),
                Err(refusal) => self.refuse_proxy(id, &refusal.to_string()),
            },
            FromProxy::Ready { cookie } if proxy.admitted.is_some() => self.hear_ready(id, cookie),
            FromProxy::Disown { cookie, addresses } if proxy.admitted.is_some() => self.disown(cookie, addresses),
            FromProxy::WantSockets { .. }
            | FromProxy::Join { .. }
            | FromProxy::Left { .. }
            | FromProxy::Ready { .. }
            | FromProxy::Disown { .. }
            | FromProxy::Hello { .. } => {
                self.refuse_proxy(id, "it spoke out of turn: Hello first, and once");
            }
        }
    }

    fn admit(&mut self, id: ProxyId, version: u32, build: String) -> Result<(), Refusal> {
        let Some(proxy) = self.proxies.get(&id) else {
            return Ok(());
        };
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        let cgroup = self.settings.hierarchy.of(proxy.pid)?;
        self.judge_cgroup(&cgroup)?;
        let cgroup_id = underpass_ebpf::cgroup_id(&cgroup).map_err(Refusal::CgroupId)?;
        self.kernel.exempt(cgroup_id)?;
        tracing::info!(pid = proxy.pid, build, cgroup = %cgroup.display(), "a proxy is here");
        let admitted = Admitted {
            build,
            cgroup,
            cgroup_id,
        };
        if let Some(proxy) = self.proxies.get_mut(&id) {
            proxy.admit(admitted);
        }
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.greeted = true;
        }
        Ok(())
    }

    /// Whether what is in a cgroup may go past the programs.
    fn judge_cgroup(&self, cgroup: &Path) -> Result<(), Refusal> {
        let same = |other: &Path| match (cgroup.metadata(), other.metadata()) {
            (Ok(one), Ok(other)) => {
                std::os::unix::fs::MetadataExt::ino(&one) == std::os::unix::fs::MetadataExt::ino(&other)
            }
            _ => cgroup == other,
        };
        if same(self.settings.hierarchy.root()) || same(&self.settings.attach) {
            return Err(Refusal::SharedCgroup(cgroup.into()));
        }
        let identities: Vec<Identity> = self.pods.values().map(|pod| pod.record.identity).collect();
        let in_a_pod = |pid: &u32| {
            let identity = Identity::at(Path::new(&format!("/proc/{pid}/ns/net")));
            identity.is_ok_and(|identity| identities.contains(&identity))
        };
        match cgroups::processes(cgroup).into_iter().find(in_a_pod) {
            Some(pid) => Err(Refusal::PodsCgroup {
                cgroup: cgroup.into(),
                pid,
            }),
            None => Ok(()),
        }
    }

    /// Gives a new proxy the maps and all pods.
    fn welcome(&mut self, id: ProxyId) {
        let welcome = FromAgent::Welcome {
            version: VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            tier_off: self.services.joining.tier().err().map(str::to_owned),
            blind: self.services.joining.tier().ok().and_then(Joiner::blind),
        };
        let mut descriptors = self.kernel.maps().to_vec();
        descriptors.extend(self.services.joining.tier().iter().flat_map(|tier| tier.descriptors()));
        let said = self.proxies.get(&id).map(|proxy| proxy.say(&welcome, &descriptors));
        if let Some(Err(error)) = said {
            return self.lose_proxy(id, &error.to_string());
        }
        let cookies: Vec<u64> = self.pods.keys().copied().collect();
        for cookie in cookies {
            self.reopen(cookie);
            self.introduce_to(id, cookie);
        }
        // What an earlier agent told it of, and this one did not, is gone.
        if let Some(Err(error)) = self.proxies.get(&id).map(|proxy| proxy.say(&FromAgent::Synced, &[])) {
            return self.lose_proxy(id, &error.to_string());
        }
        self.drain_predecessors();
    }

    fn refuse_proxy(&mut self, id: ProxyId, reason: &str) {
        if let Some(proxy) = self.proxies.get(&id) {
            tracing::warn!(pid = proxy.pid, reason, "a proxy was refused");
            let reason = format!("the agent does not work with this proxy: {reason}");
            let _ = proxy.say(&FromAgent::Refused { reason }, &[]);
        }
        self.lose_proxy(id, "refused");
    }

    /// Tells all proxies that serve of a pod.
    pub(super) fn introduce(&mut self, cookie: u64) {
        let active = self.proxies.iter().filter(|(_, proxy)| proxy.is_active());
        let ids: Vec<ProxyId> = active.map(|(id, _)| *id).collect();
        for id in ids {
            self.introduce_to(id, cookie);
        }
    }

    fn introduce_to(&mut self, id: ProxyId, cookie: u64) {
        let (Some(proxy), Some(pod)) = (self.proxies.get_mut(&id), self.pods.get(&cookie)) else {
            return;
        };
        let Some((introduction, listeners)) = pod.introduction() else {
            return;
        };
        // Of listeners that are new it has not said that it accepts from them.
        proxy.ready.remove(&cookie);
        let said = proxy.say(&FromAgent::PodAdded(introduction), &listeners.descriptors());
        if let Err(error) = said {
            self.lose_proxy(id, &error.to_string());
        }
    }

    /// Tells all proxies that a pod is no longer served.
    pub(super) fn dismiss(&mut self, cookie: u64) {
        let mut lost = Vec::new();
        for (id, proxy) in self.proxies.iter_mut().filter(|(_, proxy)| proxy.admitted.is_some()) {
            proxy.ready.remove(&cookie);
            if let Err(error) = proxy.say(&FromAgent::PodRemoved { cookie }, &[]) {
                lost.push((*id, error));
            }
        }
        for (id, error) in lost {
            self.lose_proxy(id, &error.to_string());
        }
    }

    fn hear_ready(&mut self, id: ProxyId, cookie: u64) {
        let (Some(proxy), Some(pod)) = (self.proxies.get_mut(&id), self.pods.get_mut(&cookie)) else {
            return;
        };
        proxy.ready.insert(cookie);
        if proxy.draining {
            return;
        }
        pod.unserved_since = None;
        if pod.starting.is_some() {
            self.conclude(cookie);
        }
        self.stop_refusing(cookie);
        self.drain_predecessors();
    }

    fn stop_refusing(&mut self, cookie: u64) {
        let Some(pod) = self
            .pods
            .get_mut(&cookie)
            .filter(|pod| pod.refusing && pod.listeners.is_some())
        else {
            return;
        };
        match self.kernel.set_refusing(cookie, false) {
            Ok(()) => pod.refusing = false,
            Err(error) => tracing::error!(uid = pod.record.uid, %error, "the pod stays refused"),
        }
    }

    /// A proxy that serves every pod takes the place of those that were there before it.
    fn drain_predecessors(&mut self) {
        let with_listeners = |cookies: &std::collections::HashSet<u64>| {
            let mut pods = self.pods.values().filter(|pod| pod.listeners.is_some());
            pods.all(|pod| cookies.contains(&pod.record.cookie))
        };
        let mut active = self.proxies.iter().filter(|(_, proxy)| proxy.is_active()).rev();
        let Some(successor) = active
            .find(|(_, proxy)| with_listeners(&proxy.ready))
            .map(|(id, _)| *id)
        else {
            return;
        };
        let mut lost = Vec::new();
        for (id, proxy) in self
            .proxies
            .range_mut(..successor)
            .filter(|(_, proxy)| proxy.is_active())
        {
            tracing::info!(pid = proxy.pid, "a proxy has a successor and drains");
            proxy.draining = true;
            if let Err(error) = proxy.say(&FromAgent::Drain, &[]) {
                lost.push((*id, error));
            }
        }
        for (id, error) in lost {
            self.lose_proxy(id, &error.to_string());
        }
    }

    /// Ends the work with a proxy. What only it could use is closed or forgotten; the pods' listeners stay for the next.
    pub(super) fn lose_proxy(&mut self, id: ProxyId, why: &str) {
        let Some(proxy) = self.proxies.remove(&id) else { return };
        let Some(admitted) = &proxy.admitted else { return };
        tracing::info!(pid = proxy.pid, why, "a proxy is gone");
        let mut others = self.proxies.values().filter_map(|proxy| proxy.admitted.as_ref());
        let in_use = others.any(|other| other.cgroup_id == admitted.cgroup_id);
        let forgotten = match in_use || admitted.cgroup_id == self.settings.own_cgroup {
            true => Ok(()),
            false => self.kernel.unexempt(admitted.cgroup_id),
        };
        // Another proxy's announcements must not be taken for those of the one that is gone.
        let last = self.proxies.values().all(|proxy| proxy.admitted.is_none());
        let swept = if last { self.kernel.sweep() } else { Ok(()) };
        if let Err(error) = forgotten.and(swept) {
            tracing::error!(%error, "something of a proxy that is gone is left in the kernel");
        }
        cgroups::remove_abandoned(self.settings.hierarchy.root());
        // A pod whose only proxy this was begins to wait now.
        let now = Instant::now();
        let unserved: Vec<u64> = self
            .pods
            .keys()
            .copied()
            .filter(|cookie| !self.is_served(*cookie))
            .collect();
        for cookie in unserved {
            if let Some(pod) = self.pods.get_mut(&cookie) {
                pod.unserved_since.get_or_insert(now);
            }
        }
    }

    /// Whether a proxy accepts a pod's connections.
    pub(super) fn is_served(&self, cookie: u64) -> bool {
        let mut active = self.proxies.values().filter(|proxy| proxy.is_active());
        active.any(|proxy| proxy.ready.contains(&cookie))
    }

    /// Whether there is a proxy to tell of a pod.
    pub(super) fn has_active_proxy(&self) -> bool {
        self.proxies.values().any(Proxy::is_active)
    }

    /// Refuses pods that no proxy has served for too long: an application rather hears "refused" than waits. Without any proxy their
    /// listeners are closed, which resets who waits in their queues.
    pub(super) fn refuse_unserved(&mut self, now: Instant) {
        let patience = self.settings.refuse_after;
        let close = !self.has_active_proxy();
        for (cookie, pod) in &mut self.pods {
            let due = pod.starting.is_none() && pod.unserved_since.is_some_and(|since| now >= since + patience);
            if due && !pod.refusing {
                match self.kernel.set_refusing(*cookie, true) {
                    Ok(()) => tracing::warn!(
                        uid = pod.record.uid,
                        "no proxy serves the pod; its connections are refused"
                    ),
                    Err(error) => {
                        tracing::error!(uid = pod.record.uid, %error, "the pod's connections wait for a proxy")
                    }
                }
                // Said once, whatever came of it.
                pod.refusing = true;
            }
            if close && pod.refusing {
                pod.listeners = None;
            }
        }
    }

    /// Lets cgroups past no longer whose proxies knew an earlier agent and have not come to this one.
    pub(super) fn forget_strays(&mut self, now: Instant) {
        if self.strays_until.is_none_or(|until| now < until) {
            return;
        }
        self.strays_until = None;
        let mut known: Vec<u64> = (self.proxies.values())
            .filter_map(|proxy| Some(proxy.admitted.as_ref()?.cgroup_id))
            .collect();
        known.push(self.settings.own_cgroup);
        let outcome = self.kernel.exempted().and_then(|mut exempted| {
            exempted.retain(|cgroup| !known.contains(cgroup));
            // Sockets that an earlier agent made bear its cgroup even when that is gone; nobody else can be in it.
            let living = cgroups::existing(self.settings.hierarchy.root(), &exempted);
            let strays = if self.has_active_proxy() { living } else { exempted };
            strays.into_iter().try_for_each(|cgroup| self.kernel.unexempt(cgroup))
        });
        if let Err(error) = outcome {
            tracing::error!(%error, "cgroups of proxies that are gone are still let past");
        }
    }
}
