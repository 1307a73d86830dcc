//! Any message where a `CheckResponse` is to stand (see [`crate::fuzzing`]).

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use ::http::{Method, Request, Uri};

use super::changes::change_headers;
use super::{ResponseChanges, Verdict, grpc};
use crate::http::intake::{Intake, MAX_HEAD, MAX_HEADERS};

/// What frames messages, or belongs to a hop: no server of authorization changes it.
const FRAMING: [::http::HeaderName; 5] = [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, UPGRADE, HOST];

/// What a server may answer. True if it is an answer; whatever it asks for, what is left is a request and a response, framed as they were.
pub fn ext_authz(bytes: &[u8]) -> bool {
    let Some(verdict) = grpc::decode(bytes) else {
        return false;
    };
    match verdict {
        Verdict::Allowed(changes) => {
            let mut intake = intake();
            let framed = framing(&intake.headers);
            // What can't be done is refused; the request is then gone.
            if let Ok(of_response) = changes.apply(&mut intake) {
                check_request(&intake, &framed);
                let mut response = response();
                let framed = framing(&response);
                let mut all = ResponseChanges::default();
                all.add(of_response);
                all.apply(&mut response);
                assert_eq!(framing(&response), framed);
            }
        }
        Verdict::Denied(denial) | Verdict::Failed(Some(denial)) => {
            let status = denial.status.map_or(200, |status| status.as_u16());
            assert!((200..600).contains(&status), "no final status: {status}");
            let mut response = response();
            let framed = framing(&response);
            if change_headers(&mut response, &denial.headers).is_ok() {
                assert_eq!(framing(&response), framed);
            }
        }
        Verdict::Failed(None) => {}
    }
    true
}

fn intake() -> Intake {
    let request = Request::post("/a?b=1&c")
        .header("host", "web.test")
        .header("x-there", "1");
    let request = request.header("content-length", "3").body(());
    let (parts, ()) = request.expect("a request").into_parts();
    Intake::new(parts).unwrap_or_else(|unfit| unreachable!("{unfit:?}"))
}

fn response() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
    headers.insert("x-there", HeaderValue::from_static("1"));
    headers
}

fn framing(headers: &HeaderMap) -> Vec<Vec<HeaderValue>> {
    let values = |name| headers.get_all(name).iter().cloned().collect();
    FRAMING.iter().map(values).collect()
}

fn check_request(intake: &Intake, framed: &[Vec<HeaderValue>]) {
    assert_eq!(framing(&intake.headers), framed);
    assert_ne!(intake.method, Method::CONNECT);
    assert!(intake.target.starts_with('/'), "{:?}", intake.target);
    assert!(intake.target.parse::<Uri>().is_ok(), "{:?}", intake.target);
    assert!(
        intake.target.bytes().all(|byte| byte.is_ascii_graphic()),
        "{:?}",
        intake.target
    );
    let authority = intake.authority.to_str().expect("a text");
    assert!(authority.parse::<::http::uri::Authority>().is_ok(), "{authority}");
    assert!(!authority.contains('@'), "{authority}");
    let fields = intake.headers.iter();
    let length: usize = fields.map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(intake.headers.len() <= MAX_HEADERS && length <= MAX_HEAD);
}
