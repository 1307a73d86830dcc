//! A running agent.

use super::node::CaptureNode;
use crate::process::Process;
use crate::wait;

/// An agent that runs until dropped.
pub struct Agent {
    process: Process,
}

impl Agent {
    pub(super) fn new(process: Process) -> Self {
        Self { process }
    }

    /// Waits until it answers on its control socket. Panics with its log when it ends instead.
    #[must_use]
    pub fn answering(mut self, node: &CaptureNode) -> Self {
        wait::eventually(wait::SOON, "the agent answers", || {
            if let Some(status) = self.process.exit_status() {
                panic!("the agent has ended: {status}\n{}", self.process.last_output());
            }
            node.underpass(&["pods"]).status.success()
        });
        self
    }

    /// Everything it has printed: its log.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// The process, for signals and its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        self.process.descriptors()
    }
}

/// Whatever a test is about: a panic in the agent fails it.
impl Drop for Agent {
    fn drop(&mut self) {
        let log = self.log();
        assert!(
            std::thread::panicking() || !log.contains("panicked at"),
            "the agent has panicked:\n{log}"
        );
    }
}
