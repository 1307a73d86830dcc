//! The self-test, on the kernel that the tests run on.

use underpass_ebpf::tier::{Variant, self_test};

use crate::needs_root;

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
    assert!(test.choice().is_some(), "{}", test.summary());
}
