//! Answers to commands.

use super::control::{Answer, Line, ProxyView, Request, TAKEOVER_VERSION};
use super::{Agent, End, kernel};

impl Agent {
    /// Does what a command asks. `Some` if the agent ends with it.
    pub(super) fn answer(&mut self, request: Request, line: Line) -> Option<End> {
        match request {
            Request::Enrol { uid, place } => self.enrol_for(line, &uid, place),
            Request::Pods => self.list(&line),
            Request::Remove(which) => line.answer(&match self.remove_named(&which) {
                Ok(uids) => Answer::Removed { uids },
                Err(error) => failed(&error),
            }),
            Request::Detach => match self.detach() {
                Ok(removed) => {
                    line.answer(&Answer::Detached { removed });
                    return Some(End::Detached);
                }
                Err(error) => line.answer(&failed(&error)),
            },
            Request::Yield {
                version: TAKEOVER_VERSION,
            } => return self.yield_to(&line),
            Request::Yield { version } => {
                let reason = format!(
                    "it speaks version {version} of the takeover, and the running agent version {TAKEOVER_VERSION}; stop that one first \
                     (pods are refused until the new one has started)"
                );
                line.answer(&Answer::Failed { reason });
            }
            Request::Taken => {}
        }
        None
    }

    fn list(&self, line: &Line) {
        let pods = self
            .pods
            .iter()
            .map(|(cookie, pod)| Answer::Pod(pod.view(self.is_served(*cookie))));
        let proxies = self.proxies.values().filter_map(|proxy| {
            let admitted = proxy.admitted.as_ref()?;
            Some(Answer::Proxy(ProxyView {
                pid: proxy.pid,
                build: admitted.build.clone(),
                cgroup: admitted.cgroup.clone(),
                ready: proxy.ready.len(),
                draining: proxy.draining,
            }))
        });
        for answer in pods.chain(proxies).chain([Answer::End]) {
            if let Err(error) = line.say(&answer, &[]) {
                return tracing::debug!(%error, "a list was not delivered");
            }
        }
    }

    /// Ends capture: frees all pods, and removes everything from the kernel and the disk.
    pub(super) fn detach(&mut self) -> Result<String, underpass_ebpf::Error> {
        let cookies: Vec<u64> = self.pods.keys().copied().collect();
        let pods = cookies.len();
        for cookie in cookies {
            self.remove(cookie, "capture ends")?;
        }
        let mut detached = self.kernel.detach()?;
        detached.pods += pods;
        let removed = kernel::describe(detached);
        tracing::info!(removed, "capture has ended");
        Ok(removed)
    }
}

fn failed(error: &impl ToString) -> Answer {
    Answer::Failed {
        reason: error.to_string(),
    }
}
