//! What a user writes takes effect in the waypoint.

use super::Mesh;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

#[test]
fn requests_to_a_service_go_through_its_waypoint_as_whom_they_are_of() {
    let Some(mesh) = Mesh::start() else { return };
    let answer = mesh.get("/who").expect("answered");
    assert_eq!(answer.status, 200);
    assert!(answer.pod().starts_with("shop/web-"), "{answer:?}");
    assert!(answer.header("x-envoy-upstream-service-time").is_some(), "{answer:?}");
    let line = underpass_tests::wait::some(underpass_tests::wait::SOON, "the waypoint's line", || {
        let mut lines = mesh.waypoint.access_lines().into_iter();
        lines.find(|line| line.text.contains("/who"))
    });
    assert!(line.text.contains(CLIENT), "{}", line.text);
    let status = mesh.waypoint.status();
    assert_eq!(status["istiod"]["rejected_count"], 0, "{status}");
}
