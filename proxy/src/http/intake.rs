//! A request as it came, turned into one that can be routed: or the answer to one that can't be.

use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, StatusCode, Uri, Version};
use underpass_config::http::RequestView;

use super::hygiene;
use super::switch::Switch;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const X_ENVOY_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Header fields of a request, as Envoy has them (`max_request_headers_count`).
pub const MAX_HEADERS: usize = 100;
/// Bytes of a request's head, as Envoy has them (`max_request_headers_kb`).
pub const MAX_HEAD: usize = 60 * 1024;

/// By these Envoy lets a client say how its request is to be treated. Here its route says so, and they end here.
pub static WISHES: [HeaderName; 12] = [
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
];

/// By these a proxy tells an endpoint what it knows of a client. From a client they are claims, and end here: who it is, it shows by its
/// certificate (Envoy's `forward_client_cert_details: SANITIZE`).
pub static CLAIMS: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-envoy-internal"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
];

/// A request that can be routed.
#[derive(Clone, Debug)]
pub struct Intake {
    /// The method.
    pub method: Method,
    /// Path and query; it begins with a slash. That of CONNECT is empty.
    pub target: String,
    /// Where the query begins in it, the question mark included.
    query_at: Option<usize>,
    /// Whom it is for.
    pub authority: HeaderValue,
    /// What goes on of its header fields; `Host` is not among them.
    pub headers: HeaderMap,
    /// What it came by.
    pub version: Version,
    /// What it asks to speak from here on.
    pub switch: Option<Switch>,
}

/// Why a request can't be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// What it is answered with.
    pub status: StatusCode,
    /// More about that, for the log (`%RESPONSE_CODE_DETAILS%`).
    pub details: &'static str,
    /// What the answer says.
    pub text: &'static str,
}

const fn unfit(status: StatusCode, details: &'static str) -> Unfit {
    let text = "";
    Unfit { status, details, text }
}

/// What Envoy's codec refuses, it refuses with a word.
const fn unreadable(status: StatusCode, details: &'static str, text: &'static str) -> Unfit {
    Unfit { status, details, text }
}

const BAD_FRAMING: Unfit = unreadable(StatusCode::BAD_REQUEST, "http1.ambiguous_framing", "Bad Request");
const UNKNOWN_CODING: Unfit = unreadable(
    StatusCode::NOT_IMPLEMENTED,
    "http1.invalid_transfer_encoding",
    "Not Implemented",
);
const TOO_MANY_HEADERS: Unfit = unfit(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http2.too_many_headers");
const TUNNEL_WITH_CONTENT: Unfit = unfit(StatusCode::BAD_REQUEST, "http2.connect_with_content");
const BLANK_AT_AN_END: Unfit = unfit(StatusCode::BAD_REQUEST, "http2.invalid_header_value");
const MISSPELT_METHOD: Unfit = unreadable(StatusCode::BAD_REQUEST, "http.invalid_method", "Bad Request");
/// Its path is none.
pub const NO_PATH: Unfit = unfit(StatusCode::BAD_REQUEST, "path_normalization_failed");
const BAD_AUTHORITY: Unfit = unreadable(StatusCode::BAD_REQUEST, "http.invalid_authority", "Bad Request");

impl Intake {
    /// The host that it is for, without a port; nothing if that is no text.
    pub fn host(&self) -> &str {
        let authority = self.authority.to_str().unwrap_or_default();
        if let Some((v6, _)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return v6;
        }
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    }

    /// The port that it is for, if it says one.
    pub fn port(&self) -> Option<u16> {
        let authority = self.authority.to_str().ok()?;
        let (_, after) = authority.rsplit_once(':').filter(|(_, after)| !after.contains(']'))?;
        after.parse().ok()
    }

    /// What came, without what belongs to its hop.
    ///
    /// # Errors
    /// Why it can't be routed.
    pub fn new(parts: Parts) -> Result<Self, Unfit> {
        let Parts {
            method,
            uri,
            version,
            mut headers,
            extensions,
            ..
        } = parts;
        if version < Version::HTTP_11 {
            // Envoy's answer while `accept_http_10` is off.
            return Err(unreadable(
                StatusCode::UPGRADE_REQUIRED,
                "low_version",
                "Upgrade Required",
            ));
        }
        if is_misspelt(&method) {
            return Err(MISSPELT_METHOD);
        }
        // HTTP/1's codec counts them before it has read them.
        if headers.len() > MAX_HEADERS {
            return Err(TOO_MANY_HEADERS);
        }
        check_framing(&headers)?;
        let authority = authority(&method, &uri, &headers)?;
        let protocol = extensions.get::<h2::ext::Protocol>();
        let is_http1 = version == Version::HTTP_11;
        let switch = match (&method, protocol) {
            (_, Some(protocol)) => Some(Switch::Upgrade(protocol.as_str().to_ascii_lowercase())),
            (&Method::CONNECT, None) => Some(Switch::Connect),
            _ if is_http1 => hygiene::upgrade(&headers).map(Switch::Upgrade),
            _ => None,
        };
        if switch.is_some() {
            // A tunnel's bytes are no content (RFC 9110, section 9.3.6). HTTP/1's codec reads what was announced, and it is refused for having come.
            let announced = headers.remove(CONTENT_LENGTH);
            if !is_http1 && announced.is_some_and(|length| length != "0") {
                return Err(TUNNEL_WITH_CONTENT);
            }
        }
        let method = match protocol {
            // As HTTP/1.1 asks for an upgrade.
            Some(_) => Method::GET,
            None => method,
        };
        hygiene::strip_hop_by_hop(&mut headers);
        if !is_http1 {
            if headers.values().any(has_blank_at_an_end) {
                return Err(BLANK_AT_AN_END);
            }
            hygiene::join_cookies(&mut headers);
        }
        headers.remove(HOST);
        // HTTP/1's codec says "100 Continue" when the body is first asked for, `streams` at once.
        headers.remove(EXPECT);
        let target = target(&method, &uri)?;
        drop_wishes_and_claims(&mut headers);
        complete(&mut headers);
        Ok(Self {
            query_at: target.find('?'),
            method,
            target,
            authority,
            headers,
            version,
            switch,
        })
    }

    /// One of the proxy's own.
    pub fn of_the_proxy(
        method: Method,
        target: String,
        authority: HeaderValue,
        headers: HeaderMap,
        version: Version,
    ) -> Self {
        Self {
            query_at: target.find('?'),
            method,
            target,
            authority,
            headers,
            version,
            switch: None,
        }
    }

    /// The same, with other header fields.
    pub fn with_headers(&self, headers: HeaderMap) -> Self {
        Self {
            method: self.method.clone(),
            target: self.target.clone(),
            query_at: self.query_at,
            authority: self.authority.clone(),
            headers,
            version: self.version,
            switch: self.switch.clone(),
        }
    }

    /// What routes look at.
    pub fn view(&self) -> RequestView<'_> {
        let (path, query) = match self.query_at {
            Some(at) => (&self.target[..at], Some(&self.target[at + 1..])),
            None => (&*self.target, None),
        };
        RequestView {
            method: self.method.as_str(),
            scheme: "http",
            // It has been parsed as an authority.
            authority: self.authority.to_str().unwrap_or_default(),
            path,
            query,
            headers: &self.headers,
        }
    }

    /// Replaces path and query.
    pub fn set_target(&mut self, target: String) {
        self.query_at = target.find('?');
        self.target = target;
    }

    /// Replaces the path; the query stays.
    pub fn set_path(&mut self, path: &str) {
        let mut target = path.to_owned();
        if let Some(at) = self.query_at {
            target.push_str(&self.target[at..]);
            self.query_at = Some(path.len());
        }
        self.target = target;
    }

    /// Replaces the query; the path stays.
    pub fn set_query(&mut self, query: &str) {
        let path = self.query_at.unwrap_or(self.target.len());
        self.target.truncate(path);
        self.query_at = (!query.is_empty()).then_some(path);
        if !query.is_empty() {
            self.target.push('?');
            self.target.push_str(query);
        }
    }
}

/// Whether a method is one that everybody knows, but for the case of its letters. It is another (RFC 9110, section 9.1), and policy would
/// take it for another; some servers do not.
fn is_misspelt(method: &Method) -> bool {
    const KNOWN: [Method; 9] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::CONNECT,
        Method::PATCH,
        Method::TRACE,
    ];
    let same_letters = |known: &Method| known.as_str().eq_ignore_ascii_case(method.as_str());
    !KNOWN.contains(method) && KNOWN.iter().any(same_letters)
}

/// Whether a value begins or ends with a blank (RFC 9113, section 8.2.1). HTTP/1.1's readers take it off: what policy has compared would not be
/// what the endpoint reads.
fn has_blank_at_an_end(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    is_blank(bytes.first()) || is_blank(bytes.last())
}

/// The codec has understood the framing; what could be understood in another way by someone else is refused nevertheless.
///
/// # Errors
/// How it can be misunderstood.
pub fn check_framing(headers: &HeaderMap) -> Result<(), Unfit> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if lengths.next().is_some() || (length.is_some() && coding.is_some()) {
        return Err(BAD_FRAMING);
    }
    let is_known = coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    match is_known && codings.next().is_none() {
        true => Ok(()),
        false => Err(UNKNOWN_CODING),
    }
}

/// Whom a request is for: what the target says goes before what `Host` says (RFC 9112, section 3.2.2), which has to be there once.
fn authority(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<HeaderValue, Unfit> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(unfit(StatusCode::BAD_REQUEST, "http1.multiple_host_headers"));
    }
    if *method != Method::CONNECT && uri.scheme().is_none() && uri.authority().is_some() {
        // `GET example.com`: neither a path nor a URI.
        return Err(unreadable(StatusCode::BAD_REQUEST, "http1.invalid_url", "Bad Request"));
    }
    let of_target = uri.authority().map(|authority| authority.as_str());
    let named = match of_target {
        Some(authority) => authority,
        None => {
            let host = host.ok_or(unfit(StatusCode::BAD_REQUEST, "missing_host_header"))?;
            host.to_str().map_err(|_| BAD_AUTHORITY)?
        }
    };
    if named.parse::<http::uri::Authority>().is_err() || named.contains('@') {
        return Err(BAD_AUTHORITY);
    }
    HeaderValue::from_str(named).map_err(|_| BAD_AUTHORITY)
}

fn target(method: &Method, uri: &Uri) -> Result<String, Unfit> {
    if *method == Method::CONNECT {
        return Ok(String::new());
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    match target.starts_with('/') {
        true => Ok(target.to_owned()),
        // `OPTIONS *` has no path to be routed by.
        false if target == "*" => Err(unfit(StatusCode::NOT_FOUND, "route_not_found")),
        false if target.starts_with('?') => Ok(format!("/{target}")),
        false => Err(NO_PATH),
    }
}

/// Takes off what a client may not say, if there is any: most say none of it, and looking for each costs more than looking at what there is.
fn drop_wishes_and_claims(headers: &mut HeaderMap) {
    let may_be_one = |name: &HeaderName| name.as_str().starts_with("x-envoy-") || *name == CLAIMS[0];
    if headers.keys().any(may_be_one) {
        for name in WISHES.iter().chain(&CLAIMS) {
            headers.remove(name);
        }
    }
}

/// Adds what every request has from here on.
fn complete(headers: &mut HeaderMap) {
    headers.entry(X_REQUEST_ID).or_insert_with(request_id);
    headers
        .entry(X_FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
}

/// A random UUID (RFC 9562, section 5.4). It names a request in logs, and protects nothing.
fn request_id() -> HeaderValue {
    let random = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes());
    let mut buffer = uuid::Uuid::encode_buffer();
    let text: &str = random.as_uuid().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn intake(request: http::request::Builder) -> Result<Intake, Unfit> {
        Intake::new(request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn the_target_goes_before_the_host() {
        let request = Request::get("http://target:81/a?b=c").header("host", "other");
        let intake = intake(request).unwrap();
        let view = intake.view();
        assert_eq!(
            (view.authority, view.path, view.query),
            ("target:81", "/a", Some("b=c"))
        );
        assert!(!intake.headers.contains_key(HOST));
    }

    #[test]
    fn what_cannot_be_routed_is_told_so() {
        let cases = [
            (Request::get("/"), "missing_host_header"),
            (
                Request::get("/").header("host", "a").header("host", "b"),
                "http1.multiple_host_headers",
            ),
            (Request::get("/").header("host", "user@a"), "http.invalid_authority"),
            (Request::get("/").header("host", "a b"), "http.invalid_authority"),
            (Request::get("/").version(Version::HTTP_10), "low_version"),
            (Request::builder().method("get").uri("http://a/"), "http.invalid_method"),
            (
                Request::builder().method("DeLETE").uri("http://a/"),
                "http.invalid_method",
            ),
            (Request::options("*").header("host", "a"), "route_not_found"),
        ];
        for (request, details) in cases {
            assert_eq!(intake(request).unwrap_err().details, details);
        }
    }

    #[test]
    fn a_value_is_what_its_reader_will_read() {
        for (value, is_taken) in [
            ("admin", true),
            ("a b", true),
            ("", true),
            (" admin", false),
            ("admin\t", false),
        ] {
            let request = Request::get("http://a/")
                .version(Version::HTTP_2)
                .header("x-role", value);
            assert_eq!(intake(request).is_ok(), is_taken, "{value:?}");
        }
    }

    /// What an endpoint of HTTP/1.1 takes for the length of a body would be the beginning of the next request on its connection, which may be another client's.
    #[test]
    fn a_tunnel_announces_no_content() {
        let connect = |length: &'static str, protocol: Option<&'static str>| {
            let mut request = Request::connect("a:1").version(Version::HTTP_2);
            if let Some(protocol) = protocol {
                request = Request::connect("http://a:1/chat").version(Version::HTTP_2);
                request = request.extension(h2::ext::Protocol::from_static(protocol));
            }
            intake(request.header(CONTENT_LENGTH, length))
        };
        for protocol in [None, Some("websocket")] {
            let refused = connect("50", protocol).unwrap_err();
            assert_eq!(refused.details, "http2.connect_with_content");
            let taken = connect("0", protocol).unwrap();
            assert!(!taken.headers.contains_key(CONTENT_LENGTH));
        }
    }

    #[test]
    fn what_only_a_proxy_may_say_is_not_taken_from_a_client() {
        let mut request = Request::get("/").header("host", "a").header("x-kept", "1");
        let claims = [
            "x-forwarded-client-cert",
            "x-envoy-internal",
            "x-envoy-upstream-rq-timeout-alt-response",
            "x-envoy-force-trace",
            "x-envoy-ip-tags",
            "x-envoy-original-url",
            "x-envoy-expected-rq-timeout-ms",
        ];
        for name in claims {
            request = request.header(name, "forged");
        }
        let intake = intake(request).unwrap();
        assert!(
            intake.headers.values().all(|value| value != "forged"),
            "{:?}",
            intake.headers
        );
        assert!(intake.headers.contains_key("x-kept"));
    }

    #[test]
    fn header_fields_are_counted_whatever_they_came_by() {
        for (fields, status) in [(MAX_HEADERS - 1, None), (MAX_HEADERS, Some(431))] {
            let mut request = Request::get("http://a/").version(Version::HTTP_2).header("x-one", "1");
            for _ in 0..fields {
                request = request.header("x-more", "1");
            }
            assert_eq!(intake(request).err().map(|unfit| unfit.status.as_u16()), status);
        }
    }

    #[test]
    fn a_new_path_keeps_the_query() {
        let mut intake = intake(Request::get("/a?b").header("host", "h")).unwrap();
        intake.set_path("/longer");
        assert_eq!((intake.view().path, intake.view().query), ("/longer", Some("b")));
        assert_eq!(intake.target, "/longer?b");
    }

    #[test]
    fn a_new_query_keeps_the_path() {
        let mut intake = intake(Request::get("/a?b").header("host", "h")).unwrap();
        for (query, target) in [("c=1", "/a?c=1"), ("", "/a"), ("", "/a"), ("d", "/a?d")] {
            intake.set_query(query);
            let view = intake.view();
            assert_eq!(
                (&*intake.target, view.path, view.query.unwrap_or_default()),
                (target, "/a", query)
            );
        }
    }

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        let (id, another) = (request_id(), request_id());
        let id = id.to_str().unwrap();
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        assert_ne!(id, another);
    }
}
