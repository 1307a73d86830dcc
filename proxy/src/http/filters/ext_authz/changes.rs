//! What an authorization server wants changed: of the request, as it goes on, and of its response.
//!
//! What it says is bounded, and either done whole or not at all. What frames a message is nobody's to change.

use std::collections::BTreeMap;

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use ::http::uri::PathAndQuery;
use ::http::{Method, Uri};
use bytes::Bytes;
use serde_json::{Map, Value};
use underpass_config::http::is_editable;

use crate::http::intake::{Intake, MAX_HEAD, MAX_HEADERS};
use crate::http::switch::Switch;

/// One header field that is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Its name, which may be one of HTTP/2's own, or none.
    pub name: String,
    /// What it is changed to.
    pub value: Bytes,
    /// In which way.
    pub way: Way,
}

/// What becomes of the values that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They stay, and this is one more.
    Add,
    /// It becomes part of the last of them, behind a comma; if there is none, nothing becomes of it (`append` of old).
    Join,
    /// It is added if there are none.
    Default,
    /// It takes their place.
    Set,
    /// It takes their place, if there are any.
    Replace,
}

/// All that is to be changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Of the request, in this order.
    pub request: Vec<Mutation>,
    /// Fields of the request that are taken away, after that.
    pub remove: Vec<String>,
    /// Parameters of its query that get a value.
    pub set_query: Vec<(String, String)>,
    /// And those that go.
    pub remove_query: Vec<String>,
    /// Of the response.
    pub response: Vec<Mutation>,
    /// What it tells of the request besides.
    pub metadata: Map<String, Value>,
}

/// It asks for what can't be.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid;

/// What is to be changed of a response, whoever's it is.
#[derive(Debug, Default)]
pub struct ResponseChanges(Vec<Mutation>);

impl ResponseChanges {
    /// Those of one more server.
    pub fn add(&mut self, more: Vec<Mutation>) {
        self.0.extend(more);
    }

    /// Does them.
    pub fn apply(&self, headers: &mut HeaderMap) {
        // They were found to be such as can be done.
        let _ = change_headers(headers, &self.0);
    }
}

impl Changes {
    /// Whether any of them are the request's.
    pub fn are_of_request(&self) -> bool {
        !(self.request.is_empty()
            && self.remove.is_empty()
            && self.set_query.is_empty()
            && self.remove_query.is_empty())
    }

    /// Does those of the request; answers those of its response, which can be done.
    ///
    /// # Errors
    /// When one of them can't.
    pub fn apply(self, intake: &mut Intake) -> Result<Vec<Mutation>, Invalid> {
        check(&self.response)?;
        check(&self.request)?;
        for mutation in &self.request {
            match mutation.name.as_str() {
                ":path" => set_target(intake, &mutation.value)?,
                ":method" => set_method(intake, &mutation.value)?,
                ":authority" | "host" => intake.authority = authority(&mutation.value)?,
                // HTTP/2's others are the hop's.
                name if name.starts_with(':') => {}
                _ => change(&mut intake.headers, mutation)?,
            }
        }
        for name in &self.remove {
            // What is the name of no field, none has.
            if let Ok(name) = HeaderName::try_from(name.as_str())
                && is_editable(&name)
            {
                intake.headers.remove(name);
            }
        }
        if !self.set_query.is_empty() || !self.remove_query.is_empty() {
            let target = with_query(&intake.target, &self.set_query, &self.remove_query);
            set_target(intake, target.as_bytes())?;
        }
        match intake.headers.len() <= MAX_HEADERS && length(&intake.headers) <= MAX_HEAD {
            true => Ok(self.response),
            false => Err(Invalid),
        }
    }
}

fn length(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

/// Whether these are as many as a message may have, and each is a field.
fn check(mutations: &[Mutation]) -> Result<(), Invalid> {
    let length: usize = mutations.iter().map(|one| one.name.len() + one.value.len()).sum();
    if mutations.len() > MAX_HEADERS || length > MAX_HEAD {
        return Err(Invalid);
    }
    let mut fields = mutations.iter().filter(|one| !one.name.starts_with(':'));
    match fields.all(|one| field(one).is_some()) {
        true => Ok(()),
        false => Err(Invalid),
    }
}

fn field(mutation: &Mutation) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(mutation.name.as_str()).ok()?;
    let value = HeaderValue::from_maybe_shared(mutation.value.clone()).ok()?;
    Some((name, value))
}

/// Does all of them, but for what is nobody's to change.
///
/// # Errors
/// When one of them can't be done.
pub fn change_headers(headers: &mut HeaderMap, mutations: &[Mutation]) -> Result<(), Invalid> {
    check(mutations)?;
    for mutation in mutations.iter().filter(|one| !one.name.starts_with(':')) {
        change(headers, mutation)?;
    }
    Ok(())
}

fn change(headers: &mut HeaderMap, mutation: &Mutation) -> Result<(), Invalid> {
    let (name, value) = field(mutation).ok_or(Invalid)?;
    if !is_editable(&name) {
        return Ok(());
    }
    let is_there = headers.contains_key(&name);
    match (mutation.way, is_there) {
        (Way::Add, _) | (Way::Default, false) => drop(headers.append(name, value)),
        (Way::Set, _) | (Way::Replace, true) => drop(headers.insert(name, value)),
        (Way::Join, true) => join(headers, &name, &value)?,
        (Way::Join | Way::Replace, false) | (Way::Default, true) => {}
    }
    Ok(())
}

fn join(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) -> Result<(), Invalid> {
    let first = headers.get_mut(name).ok_or(Invalid)?;
    let joined = [first.as_bytes(), value.as_bytes()].join(&b","[..]);
    *first = HeaderValue::from_bytes(&joined).map_err(|_| Invalid)?;
    Ok(())
}

fn set_target(intake: &mut Intake, target: &[u8]) -> Result<(), Invalid> {
    let target = std::str::from_utf8(target).map_err(|_| Invalid)?;
    let is_path =
        target.starts_with('/') && !target.contains('#') && target.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path || target.parse::<PathAndQuery>().is_err() || target.parse::<Uri>().is_err() {
        return Err(Invalid);
    }
    // A tunnel has none.
    if intake.switch != Some(Switch::Connect) {
        intake.set_target(target.to_owned());
    }
    Ok(())
}

fn set_method(intake: &mut Intake, method: &[u8]) -> Result<(), Invalid> {
    let method = Method::from_bytes(method).map_err(|_| Invalid)?;
    match method == Method::CONNECT || intake.switch.is_some() {
        true => Err(Invalid),
        false => {
            intake.method = method;
            Ok(())
        }
    }
}

fn authority(value: &[u8]) -> Result<HeaderValue, Invalid> {
    let text = std::str::from_utf8(value).map_err(|_| Invalid)?;
    let is_one = text.parse::<::http::uri::Authority>().is_ok() && !text.contains('@');
    let value = HeaderValue::from_bytes(value).ok().filter(|_| is_one);
    value.ok_or(Invalid)
}

/// A target whose query has other parameters: they are then written in the order of their names, as Envoy writes them.
fn with_query(target: &str, set: &[(String, String)], remove: &[String]) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parameters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        parameters.entry(name).or_default().push(value);
    }
    for (name, value) in set {
        parameters.insert(name, vec![value]);
    }
    for name in remove {
        parameters.remove(name.as_str());
    }
    let written = parameters
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}={value}")));
    let written: Vec<String> = written.collect();
    match written.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", written.join("&")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutation(name: &str, value: &str, way: Way) -> Mutation {
        Mutation {
            name: name.to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            way,
        }
    }

    fn intake() -> Intake {
        let request = ::http::Request::get("/a?b=1&c=2")
            .header("host", "h")
            .header("x-there", "1");
        Intake::new(request.body(()).unwrap().into_parts().0).unwrap()
    }

    fn changed(request: Vec<Mutation>) -> Result<Intake, Invalid> {
        let mut intake = intake();
        let changes = Changes {
            request,
            ..Changes::default()
        };
        changes.apply(&mut intake).map(|_| intake)
    }

    #[test]
    fn fields_are_changed_in_their_order() {
        let ways = [Way::Add, Way::Join, Way::Default, Way::Set, Way::Replace];
        let values = |name: &str, way| {
            let intake = changed(vec![mutation(name, "2", way)]).unwrap();
            let values = intake.headers.get_all(name).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(ways.map(|way| values("x-there", way)), ["1 2", "1,2", "1", "2", "2"]);
        assert_eq!(ways.map(|way| values("x-new", way)), ["2", "", "2", "2", ""]);
    }

    #[test]
    fn what_frames_a_message_is_not_changed() {
        for name in [
            "content-length",
            "transfer-encoding",
            "Connection",
            "te",
            "upgrade",
            ":scheme",
        ] {
            let intake = changed(vec![mutation(name, "5", Way::Set)]).unwrap();
            assert_eq!(intake.headers, intake_like(&intake));
        }
    }

    /// The same headers as a request has that nobody has changed, with its own id.
    fn intake_like(changed: &Intake) -> HeaderMap {
        let mut headers = intake().headers;
        let id = changed.headers["x-request-id"].clone();
        headers.insert("x-request-id", id);
        headers
    }

    #[test]
    fn what_is_no_field_is_refused_whole() {
        for (name, value) in [
            ("x y", "1"),
            ("", "1"),
            ("x-a", "1\r\nx-b: 2"),
            (":path", "/a b"),
            (":path", "http://other/"),
            (":path", "/a#b"),
            (":path", ""),
            (":method", "GET /"),
            (":method", "CONNECT"),
            (":authority", "user@h"),
            ("host", "a b"),
        ] {
            assert_eq!(
                changed(vec![mutation(name, value, Way::Set)]).err(),
                Some(Invalid),
                "{name}: {value}"
            );
        }
        let many = vec![mutation("x-more", "1", Way::Add); MAX_HEADERS + 1];
        assert_eq!(changed(many).err(), Some(Invalid));
        let long = "x".repeat(MAX_HEAD);
        assert_eq!(changed(vec![mutation("x-long", &long, Way::Set)]).err(), Some(Invalid));
        // Each for itself is not too many.
        let enough = vec![mutation("x-more", "1", Way::Add); MAX_HEADERS - 1];
        assert_eq!(changed(enough).err(), Some(Invalid));
    }

    #[test]
    fn a_request_may_become_another() {
        let intake = changed(vec![
            mutation(":path", "/other?x", Way::Set),
            mutation(":method", "PUT", Way::Set),
            mutation(":authority", "b:81", Way::Set),
        ])
        .unwrap();
        assert_eq!((intake.view().path, intake.view().query), ("/other", Some("x")));
        assert_eq!(
            (intake.method.as_str(), intake.authority.to_str().unwrap()),
            ("PUT", "b:81")
        );
    }

    #[test]
    fn a_query_is_written_anew() {
        let set = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert_eq!(with_query("/a?c=2&b=1&b=3", &set("a", "0"), &[]), "/a?a=0&b=1&b=3&c=2");
        assert_eq!(with_query("/a?c=2&b", &set("c", "3"), &["x".to_owned()]), "/a?b=&c=3");
        assert_eq!(with_query("/a?b=1", &[], &["b".to_owned()]), "/a");
    }
}
