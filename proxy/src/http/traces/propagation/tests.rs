use proptest::prelude::*;

use super::*;

const ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::try_from(*value).unwrap());
    }
    headers
}

/// The trace, the parent, whether it is sampled, and what others have noted.
fn read(words: Propagation, fields: &[(&'static str, &str)]) -> Option<(String, String, Option<bool>, String)> {
    let Came::Trace(trace) = Came::of(&[words], &headers(fields)) else {
        return None;
    };
    let mut text = [0; 32];
    hex(&trace.context.trace_id, &mut text);
    let id = String::from_utf8(text.to_vec()).unwrap();
    let mut text = [0; 16];
    hex(&trace.parent.unwrap_or_default(), &mut text);
    let parent = String::from_utf8(text.to_vec()).unwrap();
    let state = String::from_utf8(trace.context.state).unwrap();
    Some((id, parent, trace.is_sampled, state))
}

/// As Envoy 1.40 has answered them.
#[test]
fn traceparent_is_read_as_envoys_tracer_reads_it() {
    let parent = |text: String| read(Propagation::W3c, &[("traceparent", &text)]);
    let known = |sampled| Some((ID.to_owned(), PARENT.to_owned(), Some(sampled), String::new()));
    for (text, came) in [
        (format!("00-{ID}-{PARENT}-01"), known(true)),
        (format!("00-{ID}-{PARENT}-00"), known(false)),
        (format!("01-{}-{PARENT}-03", ID.to_uppercase()), known(true)),
        (format!("ff-{ID}-{PARENT}-01"), known(true)),
        (format!("00-{ID}-{PARENT}-fe"), known(false)),
        (format!("00-{}-{PARENT}-01", "0".repeat(32)), None),
        (format!("00-{ID}-{}-01", "0".repeat(16)), None),
        (format!("00-{ID}-{PARENT}-01-x"), None),
        (format!("00_{ID}-{PARENT}-01"), None),
        (format!("0g-{ID}-{PARENT}-01"), None),
        (format!("00-{ID}-{PARENT}-0g"), None),
        (format!("00-{}-{PARENT}-01", ID.replace('0', "g")), None),
        ("garbage".to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(parent(text.clone()), came, "{text}");
    }
    let text = format!("00-{ID}-{PARENT}-01");
    let states = [("traceparent", &*text), ("tracestate", "a=b"), ("tracestate", "c=d")];
    assert_eq!(read(Propagation::W3c, &states).unwrap().3, "a=b,c=d");
    assert_eq!(
        Came::of(&[Propagation::W3c], &headers(&[("tracestate", "a=b")])),
        Came::Nothing
    );
    assert_eq!(
        Came::of(&[Propagation::W3c], &headers(&[("traceparent", "")])),
        Came::Garbage
    );
}

#[test]
fn b3_is_read_in_one_header_and_in_several() {
    let single = |text: &str| read(Propagation::B3, &[("b3", text)]);
    let known = |sampled| Some((ID.to_owned(), PARENT.to_owned(), sampled, String::new()));
    let short = &ID[16..];
    for (text, came) in [
        (format!("{ID}-{PARENT}-1"), known(Some(true))),
        (format!("{ID}-{PARENT}-d"), known(Some(true))),
        (format!("{ID}-{PARENT}-0-{PARENT}"), known(Some(false))),
        (format!("{ID}-{PARENT}"), known(None)),
        (
            format!("{short}-{PARENT}-1"),
            Some((
                format!("{}{short}", "0".repeat(16)),
                PARENT.to_owned(),
                Some(true),
                String::new(),
            )),
        ),
        (format!("{ID}-{PARENT}-2"), None),
        (format!("{ID}-{PARENT}-1-{PARENT}-x"), None),
        (format!("{ID}-{PARENT}-1-x"), None),
        (format!("{}-{PARENT}-1", &ID[1..]), None),
        (ID.to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(single(&text), came, "{text}");
    }
    let decided = Came::of(&[Propagation::B3], &headers(&[("b3", "0")]));
    assert!(
        matches!(
            decided,
            Came::Trace(Trace {
                parent: None,
                is_sampled: Some(false),
                ..
            })
        ),
        "{decided:?}"
    );
    let several = |fields: &[(&'static str, &str)]| read(Propagation::B3Multi, fields);
    let ids = [("x-b3-traceid", ID), ("x-b3-spanid", PARENT)];
    let with = |name, value| [&ids[..], &[(name, value)]].concat();
    assert_eq!(several(&ids), known(None));
    assert_eq!(several(&with("x-b3-sampled", "1")), known(Some(true)));
    assert_eq!(several(&with("x-b3-sampled", "false")), known(Some(false)));
    assert_eq!(several(&with("x-b3-flags", "1")), known(Some(true)));
    assert_eq!(several(&with("x-b3-sampled", "maybe")), None);
    assert_eq!(several(&ids[..1]), None);
    assert_eq!(Came::of(&[Propagation::B3Multi], &HeaderMap::new()), Came::Nothing);
}

#[test]
fn a_span_takes_the_place_of_its_parent() {
    let text = format!("00-{ID}-{PARENT}-01");
    let came = headers(&[
        ("traceparent", &*text),
        ("tracestate", "a=b"),
        ("x-b3-parentspanid", PARENT),
        ("x-b3-flags", "1"),
        ("b3", "0"),
    ]);
    let all = [Propagation::W3c, Propagation::B3, Propagation::B3Multi];
    let Came::Trace(trace) = Came::of(&all, &came) else {
        panic!()
    };
    let ours = trace.context.below(true);
    let mut on = came.clone();
    ours.inject(&all, &mut on);
    for words in all {
        let Came::Trace(again) = Came::of(&[words], &on) else {
            panic!("{words:?}")
        };
        assert_eq!(again.context.trace_id, trace.context.trace_id);
        assert_eq!(again.parent, Some(ours.span_id));
        assert_ne!(again.parent, trace.parent);
        assert_eq!(again.is_sampled, Some(true));
    }
    assert_eq!(on["tracestate"], "a=b");
    assert!(!on.contains_key("x-b3-parentspanid") && !on.contains_key("x-b3-flags"));
    // What comes with no trace of W3C's is nobody's.
    let fresh = Context::fresh(false);
    fresh.inject(&[Propagation::W3c], &mut on);
    assert!(!on.contains_key("tracestate") && on["traceparent"].to_str().unwrap().ends_with("-00"));
}

proptest! {
    #[test]
    fn whatever_comes_is_read_or_not(text in "[ -~]{0,80}", at in 0usize..55, byte in 32u8..127) {
        let mut almost = format!("00-{ID}-{PARENT}-01").into_bytes();
        almost[at] = byte;
        for value in [text.as_bytes(), &almost] {
            let value = HeaderValue::from_bytes(value).unwrap();
            let mut fields = HeaderMap::new();
            for name in [TRACEPARENT, B3, TRACE_ID, SPAN_ID, SAMPLED] {
                fields.insert(name, value.clone());
            }
            for words in [Propagation::W3c, Propagation::B3, Propagation::B3Multi] {
                if let Came::Trace(trace) = Came::of(&[words], &fields) {
                    prop_assert!(trace.context.trace_id != [0; 16]);
                    prop_assert!(trace.parent != Some([0; 8]));
                }
            }
        }
    }
}
