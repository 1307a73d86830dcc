//! One agent takes over from another without a gap: sockets, namespaces and connections are handed on as descriptors.
//!
//! The old agent stops reading, hands everything over, and waits for a last word. If that does not come it goes on as if nothing had
//! been: what it handed over were copies. What is in the kernel stays untouched throughout.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Answer, ControlError, Line, Request, TAKEOVER_VERSION, YieldedPod, YieldedProxy};
use super::doors::{self, Doors};
use super::listeners::Listeners;
use super::namespace::Namespace;
use super::pods::Pod;
use super::proxies::{Admitted, Proxy};
use super::{Agent, AgentError, End};
use crate::handover::HandoverError;

/// How long an agent that starts waits for one that ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries to get the lock.
const RETRY: Duration = Duration::from_millis(50);

/// How an agent comes by its run directory.
pub enum Claim {
    /// There is no other.
    Free(OwnedFd),
    /// Another hands over.
    Inherited(Box<Inheritance>),
}

/// All that an agent hands over.
pub struct Inheritance {
    line: Line,
    lock: OwnedFd,
    agent: OwnedFd,
    control: OwnedFd,
    pods: Vec<(YieldedPod, Namespace, Option<Listeners>)>,
    proxies: Vec<(YieldedProxy, OwnedFd)>,
}

impl Claim {
    /// Claims a run directory, from another agent if there is one.
    ///
    /// # Errors
    /// When the other agent stays.
    pub fn stake(run_dir: &Path, may_take_over: bool) -> Result<Self, AgentError> {
        let occupied = |reason: String| AgentError::Occupied {
            run_dir: run_dir.into(),
            reason,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) = doors::lock(run_dir)? {
                return Ok(Self::Free(lock));
            }
            if !may_take_over {
                return Err(occupied("`underpass run` starts its own; stop that one first".into()));
            }
            match Inheritance::ask_for(run_dir) {
                Ok(inheritance) => return Ok(Self::Inherited(Box::new(inheritance))),
                Err(ControlError::Failed(reason)) => return Err(occupied(reason)),
                Err(error @ ControlError::PathTooLong(_)) => return Err(error.into()),
                // It is about to start or to end.
                Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(error) => return Err(occupied(format!("{error}; stop that agent first"))),
            }
        }
    }
}

impl Inheritance {
    fn ask_for(run_dir: &Path) -> Result<Self, ControlError> {
        let request = Request::Yield {
            version: TAKEOVER_VERSION,
        };
        let line = Line::call(run_dir, &request)?;
        let (Answer::Yielding, descriptors) = line.listen()? else {
            return Err(ControlError::Misunderstood);
        };
        let Ok([lock, agent, control]) = <[OwnedFd; 3]>::try_from(descriptors) else {
            return Err(ControlError::Misunderstood);
        };
        let (mut pods, mut proxies) = (Vec::new(), Vec::new());
        loop {
            match line.listen()? {
                (Answer::YieldedPod(pod), descriptors) => pods.push(received_pod(pod, descriptors)?),
                (Answer::YieldedProxy(proxy), mut descriptors) if descriptors.len() == 1 => {
                    proxies.push((proxy, descriptors.remove(0)));
                }
                (Answer::End, _) => break,
                _ => return Err(ControlError::Misunderstood),
            }
        }
        Ok(Self {
            line,
            lock,
            agent,
            control,
            pods,
            proxies,
        })
    }

    /// The sockets, and the rest for [`Agent::inherit`].
    pub fn into_parts(self) -> (Doors, Estate) {
        let doors = Doors::inherited(self.lock, self.agent, self.control);
        let estate = Estate {
            line: self.line,
            pods: self.pods,
            proxies: self.proxies,
        };
        (doors, estate)
    }
}

/// Pods and proxies that are handed over, and whom to thank for them.
pub struct Estate {
    line: Line,
    pods: Vec<(YieldedPod, Namespace, Option<Listeners>)>,
    proxies: Vec<(YieldedProxy, OwnedFd)>,
}

fn received_pod(
    pod: YieldedPod,
    mut descriptors: Vec<OwnedFd>,
) -> Result<(YieldedPod, Namespace, Option<Listeners>), ControlError> {
    if descriptors.is_empty() {
        return Err(ControlError::Misunderstood);
    }
    let sockets = descriptors.split_off(1);
    let namespace = descriptors.pop().map(Namespace::of).transpose();
    let namespace = namespace
        .map_err(HandoverError::Io)?
        .flatten()
        .ok_or(ControlError::Misunderstood)?;
    let listeners = match sockets.is_empty() {
        true => None,
        false => {
            let received = Listeners::received(pod.outbound.clone(), pod.inbound.clone(), sockets);
            Some(received.ok_or(ControlError::Misunderstood)?)
        }
    };
    Ok((pod, namespace, listeners))
}

impl Agent {
    /// Hands everything over to the agent that asks. `Some` if it has taken it.
    pub(super) fn yield_to(&mut self, line: &Line) -> Option<End> {
        if self.supervisor.is_some() {
            let process = std::process::id();
            let reason = format!("it belongs to `underpass run` (process {process}); stop that first");
            line.answer(&Answer::Failed { reason });
            return None;
        }
        self.pause();
        let taken = self.hand_over(line).and_then(|()| line.request());
        match taken {
            Ok(Request::Taken) => {
                tracing::info!(pods = self.pods.len(), "another agent has taken over");
                return Some(End::Yielded);
            }
            Ok(_) => tracing::warn!("an agent that was to take over said something else; going on"),
            Err(error) => tracing::warn!(%error, "an agent that was to take over did not; going on"),
        }
        if let Err(error) = self.resume() {
            tracing::error!(%error, "this agent could not go on after a takeover that failed; restart it");
            return Some(End::Stopped);
        }
        None
    }

    /// Stops reading from sockets, and takes in what was read.
    fn pause(&mut self) {
        self.doors.pause();
        self.proxies.values_mut().for_each(Proxy::pause);
        self.proxies.retain(|_, proxy| proxy.admitted.is_some());
        for event in self.events.try_iter().collect::<Vec<_>>() {
            match event {
                super::Event::ProxySaid(id, message) => self.hear_proxy(id, message),
                super::Event::ProxyGone(id, why) => self.lose_proxy(id, &why.to_string()),
                super::Event::Asked(_, line) => line.answer(&Answer::Failed {
                    reason: "the agent is being replaced; try again".into(),
                }),
                // They notice, and come again.
                super::Event::ProxyConnected { .. } => {}
                // For the case that this agent goes on.
                event @ (super::Event::Signalled(_) | super::Event::ChildEnded) => drop(self.sender.send(event)),
            }
        }
        let starting: Vec<u64> = self
            .pods
            .values()
            .filter(|pod| pod.starting.is_some())
            .map(|pod| pod.record.cookie)
            .collect();
        starting.into_iter().for_each(|cookie| self.conclude(cookie));
    }

    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.doors.listen(self.settings.proxy_uid, &self.sender)?;
        for (id, proxy) in &mut self.proxies {
            proxy.listen(*id, &self.services, &self.sender)?;
        }
        Ok(())
    }

    fn hand_over(&self, line: &Line) -> Result<(), HandoverError> {
        let sockets = [
            self.doors.lock.as_fd(),
            self.doors.agent.as_fd(),
            self.doors.control.as_fd(),
        ];
        line.say(&Answer::Yielding, &sockets)?;
        for pod in self.pods.values() {
            let listeners = pod.listeners.as_ref();
            let yielded = YieldedPod {
                record: pod.record.clone(),
                addresses: pod.addresses.clone(),
                interfaces: pod.interfaces.clone(),
                disowned: pod.disowned.clone(),
                outbound: listeners.map(Listeners::outbound_addresses).unwrap_or_default(),
                inbound: listeners.map(Listeners::inbound_addresses).unwrap_or_default(),
                refusing: pod.refusing,
            };
            let mut descriptors = vec![pod.namespace.as_fd()];
            descriptors.extend(listeners.into_iter().flat_map(Listeners::descriptors));
            line.say(&Answer::YieldedPod(yielded), &descriptors)?;
        }
        for proxy in self.proxies.values() {
            let Some(admitted) = &proxy.admitted else { continue };
            let yielded = YieldedProxy {
                build: admitted.build.clone(),
                pid: proxy.pid,
                cgroup: admitted.cgroup.clone(),
                ready: proxy.ready.iter().copied().collect(),
                draining: proxy.draining,
            };
            line.say(&Answer::YieldedProxy(yielded), &[proxy.as_fd()])?;
        }
        line.say(&Answer::End, &[])
    }

    /// Takes up what another agent handed over, and lets that one end.
    ///
    /// # Errors
    /// When the other agent is gone; then this one is not its successor.
    pub(super) fn inherit(&mut self, estate: Estate) -> Result<(), AgentError> {
        for (yielded, namespace, listeners) in estate.pods {
            let (uid, cookie) = (yielded.record.uid.clone(), yielded.record.cookie);
            let pod = Pod {
                record: yielded.record,
                namespace: Arc::new(namespace),
                addresses: yielded.addresses,
                interfaces: yielded.interfaces,
                disowned: yielded.disowned,
                listeners,
                refusing: yielded.refusing,
                unserved_since: Some(Instant::now()),
                starting: None,
            };
            // The same again; but this agent's version may have more to tell the kernel.
            if let Err(error) = self.kernel.enrol(&pod.spec()) {
                tracing::error!(uid, %error, "a pod could not be taken up and stays as it was");
            }
            self.services.namespaces.insert(&pod);
            self.pods.insert(cookie, pod);
        }
        for (yielded, socket) in estate.proxies {
            self.inherit_proxy(yielded, socket)?;
        }
        self.save()?;
        estate.line.say(&Request::Taken, &[]).map_err(ControlError::Silent)?;
        tracing::info!(
            pods = self.pods.len(),
            proxies = self.proxies.len(),
            "took over from another agent"
        );
        Ok(())
    }

    fn inherit_proxy(&mut self, yielded: YieldedProxy, socket: OwnedFd) -> Result<(), AgentError> {
        let mut proxy = Proxy::new(socket, yielded.pid)?;
        let cgroup_id = underpass_ebpf::cgroup_id(&yielded.cgroup).unwrap_or_default();
        proxy.admit(Admitted {
            build: yielded.build,
            cgroup: yielded.cgroup,
            cgroup_id,
        });
        proxy.draining = yielded.draining;
        if proxy.is_active() {
            for cookie in &yielded.ready {
                if let Some(pod) = self.pods.get_mut(cookie) {
                    pod.unserved_since = None;
                }
            }
        }
        proxy.ready = yielded.ready.into_iter().collect();
        self.next_proxy += 1;
        self.proxies.insert(self.next_proxy, proxy);
        Ok(())
    }
}
