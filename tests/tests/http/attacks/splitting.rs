//! Endpoints that say more than they were asked: none of it is another request's answer.

use super::Place;
use crate::client::{ask, get};

#[test]
fn what_an_endpoint_says_beyond_an_answer_is_nobodys() {
    let place = Place::new();
    let poisons = [
        "twice",
        "none-with-body",
        "unmodified-with-body",
        "head-with-body",
        "both",
        "lengths",
        "coding",
        "interim",
        "switch",
        "split",
    ];
    for poison in poisons {
        for n in 0..5 {
            let mut request = get(&format!("/poison/{poison}"), &format!("x-poison: {poison}\r\n"));
            if poison == "head-with-body" {
                request = request.replacen("GET", "HEAD", 1);
            }
            let seen = ask(&place.client, place.at, &request);
            assert_ne!(seen.header("x-told"), Some("forged"), "{poison}: {seen:?}");
            if ["both", "lengths", "coding", "switch", "split"].contains(&poison) {
                assert_eq!(seen.status, 502, "{poison}: {seen:?}");
            }
            let victim = format!("/victim/{poison}{n}");
            let seen = ask(&place.client, place.at, &get(&victim, ""));
            assert_eq!(
                seen.header("x-told"),
                Some(&*format!("GET {victim} 0")),
                "after {poison}: {seen:?}"
            );
        }
    }
}
