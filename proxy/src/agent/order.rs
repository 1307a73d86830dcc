//! Whether the capture sees a connect() before anybody else rewrites it.
//!
//! Behind another program that turns a service's address into a backend's we would see the backend: the right pod, but not the service,
//! so none of what is configured for it. Kernels from 6.17 put our programs in front when asked (`BPF_F_BEFORE`); on older ones whoever
//! came first at a cgroup is first, and then capture is refused rather than half done.

use std::path::Path;

use underpass_ebpf::doctor::{Foreign, foreign_programs};

use super::AgentError;
use super::kernel::Kernel;

/// Looks who is in front of the programs that `kernel` has attached to `cgroup`. Pods that are captured already stay so.
///
/// # Errors
/// When somebody is, and no pod is captured yet; the programs are detached again then.
pub fn check(kernel: &dyn Kernel, cgroup: &Path, pin_dir: &Path) -> Result<(), AgentError> {
    let others = foreign_programs(cgroup, pin_dir)?;
    let Some(Foreign { hook, name, id, .. }) = others.into_iter().find(is_in_the_way) else {
        return Ok(());
    };
    let error = AgentError::Behind {
        cgroup: cgroup.into(),
        hook,
        name,
        id,
    };
    if kernel.pods()?.is_empty() {
        kernel.detach()?;
        return Err(error);
    }
    tracing::error!(%error, "services of captured pods may not be recognised");
    Ok(())
}

fn is_in_the_way(other: &Foreign) -> bool {
    other.hook.starts_with("connect") && other.before_ours == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_rewrites_connects_before_us_is_in_the_way() {
        let other = |hook, before_ours| Foreign {
            hook,
            name: "lb".into(),
            id: 7,
            direct: true,
            before_ours,
        };
        assert!(is_in_the_way(&other("connect4", Some(true))));
        assert!(is_in_the_way(&other("connect6", Some(true))));
        assert!(!is_in_the_way(&other("connect4", Some(false))));
        assert!(!is_in_the_way(&other("connect4", None)));
        assert!(!is_in_the_way(&other("sock_ops", Some(true))));
    }
}
