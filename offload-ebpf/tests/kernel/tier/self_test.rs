//! The self-test, on the kernel that the tests run on.

use underpass_ebpf::Error;
use underpass_ebpf::tier::{SelfTest, Tier, Variant, self_test};

use super::world::{World, write};
use crate::needs_root;
use crate::site::{Site, skip};

#[test]
fn the_self_test_finds_a_variant_that_behaves_and_says_what_it_tried() {
    needs_root!();
    let started = std::time::Instant::now();
    let test = self_test();
    eprintln!("in {:?}: {}", started.elapsed(), test.summary());
    assert_eq!(test.obstacle, None);
    for variant in Variant::ALL {
        let trials = test.trials.iter().filter(|trial| trial.variant == variant);
        assert!(trials.count() > 10);
    }
    if test.choice().is_none() {
        skip(&format!("this kernel has no kernel tier: {}", test.summary()));
    }
}

/// Whoever asks before it reads, as nginx does, would wait for ever for what is not counted (Debian's Linux 6.1).
#[test]
fn where_redirected_bytes_are_not_counted_the_tier_is_off() {
    needs_root!();
    let test = self_test();
    for variant in Variant::ALL {
        let site = Site::new();
        let capture = site.start();
        let tier = Tier::start_untested(&capture, variant).unwrap();
        let tested = Tier::start(&capture);
        let world = World::of(site, capture, tier);
        let flow = world.flow();
        let joined = world.joined(&flow);
        write(&flow.a, &[1; 1500]);
        assert_eq!(joined.tally(underpass_ebpf::tier::Direction::Out).bypassed_bytes, 1500);
        let counted = rustix::io::ioctl_fionread(&flow.b).unwrap();
        eprintln!("{}: {counted} of 1500 bytes are counted", variant.name());
        assert_eq!(finds_a_lie(&test, variant), counted != 1500, "{}", test.summary());
        match tested {
            Ok(tier) => assert!(counted == 1500 || !tier.variants().contains(&variant)),
            Err(Error::TierOff { reason }) => assert!(reason.contains(FIONREAD), "{reason}"),
            Err(error) => panic!("{error}"),
        }
    }
}

const FIONREAD: &str = "FIONREAD counts redirected bytes";

fn finds_a_lie(test: &SelfTest, variant: Variant) -> bool {
    let mut trials = test.trials.iter();
    let trial = trials.find(|trial| trial.variant == variant && trial.behaviour == FIONREAD);
    trial.expect("it is tried").failure.is_some()
}
