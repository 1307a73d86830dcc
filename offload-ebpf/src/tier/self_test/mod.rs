//! What the running kernel makes of redirected bytes, tried out.
//!
//! What a socket does once it is in a map of sockets differs from kernel to kernel, also among builds of the same
//! version: FIONREAD may say 0 (then nginx, Java and .NET hang), queues may go unaccounted (then memory is without
//! bound). So no version is trusted: at each start flows of its own are made over loopback, with maps of their own, and
//! only the variants that behave are used.

mod bench;
mod trials;

use super::{Variant, offsets};
use bench::Bench;

/// What was tried, and which variants behave.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// Why nothing could be tried, if so.
    pub obstacle: Option<String>,
    /// Each behaviour, in the order in which it was tried.
    pub trials: Vec<Trial>,
}

/// One behaviour.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What should be so.
    pub behaviour: &'static str,
    /// Of which variant.
    pub variant: Variant,
    /// What was found instead; `None` when it is so.
    pub failure: Option<String>,
}

impl SelfTest {
    /// Whether a variant behaves in all that was tried.
    pub fn is_fit(&self, variant: Variant) -> bool {
        let mut trials = self.trials.iter().filter(|trial| trial.variant == variant).peekable();
        trials.peek().is_some() && trials.all(|trial| trial.failure.is_none())
    }

    /// The first variant that behaves.
    pub fn choice(&self) -> Option<Variant> {
        Variant::ALL.into_iter().find(|variant| self.is_fit(*variant))
    }

    /// What was not as it should be, in one line.
    pub fn summary(&self) -> String {
        let failures = self.trials.iter().filter_map(|trial| {
            let failure = trial.failure.as_ref()?;
            Some(format!("{} ({}): {failure}", trial.behaviour, trial.variant.name()))
        });
        let all: Vec<_> = self.obstacle.clone().into_iter().chain(failures).collect();
        all.join("; ")
    }
}

/// Tries on sockets of its own, over loopback in the thread's network namespace, how the kernel behaves. Nothing of a
/// capture is touched.
pub fn self_test() -> SelfTest {
    let bench = offsets().map_err(str::to_owned).and_then(|_| Bench::new());
    let (obstacle, trials) = match bench {
        Err(obstacle) => (Some(obstacle), Vec::new()),
        Ok(bench) => {
            let trial = |variant, (behaviour, attempt): &(&'static str, trials::Attempt)| Trial {
                behaviour,
                variant,
                failure: attempt(&bench, variant).err(),
            };
            let of_variant = |variant| trials::ALL.iter().map(move |it| (variant, it));
            let all = Variant::ALL.into_iter().flat_map(of_variant);
            (None, all.map(|(variant, it)| trial(variant, it)).collect())
        }
    };
    SelfTest { obstacle, trials }
}
