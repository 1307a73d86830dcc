//! Where the kernel does not treat redirected bytes as applications expect, the tier is off by itself: that is said, and everything is relayed.

use underpass_tests::capture::why_no_tier;

use crate::place::{IMPATIENT, PORT, Place};

/// Held on every kernel, with and without a tier.
#[test]
fn a_connection_moves_to_the_kernel_where_the_doctor_says_so_and_is_relayed_where_not() {
    let Some(place) = Place::captured_as_it_is(IMPATIENT) else {
        return;
    };
    let listener = place.server.listen(PORT);
    let pair = place.open(&listener);
    let tier = place.proxy.offload();
    let Some(why) = why_no_tier() else {
        assert_eq!(tier["state"], "on", "{tier}");
        place.settle_in_the_kernel(&pair);
        place.end(pair).assert_reason("completed", "-");
        return;
    };
    println!("{why}\n{tier}");
    assert_eq!(tier["state"], "off", "{tier}: {why}");
    let reason = tier["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("FIONREAD") && why.contains("FIONREAD"),
        "{reason}: {why}"
    );
    for _ in 0..100 {
        pair.exchange(&[1; 10_000]).expect("it is relayed");
    }
    assert_eq!(place.view(&pair).why_not(), "tier_off");
    let line = place.end(pair);
    line.assert_reason("completed", "-");
    assert_eq!(line.tiers().share(), 0.0, "{}", line.text);
}
