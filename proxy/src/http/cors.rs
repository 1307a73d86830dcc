//! Pages of other origins: what a browser is told of who may read an answer (Envoy's `envoy.filters.http.cors`, which comes before all else that a
//! route does).

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use http::{Method, Response};
use underpass_config::http::{Cors, CorsList};

use super::download::Download;
use super::intake::Intake;

const YES: HeaderValue = HeaderValue::from_static("true");

/// A request that says which origin it comes from, to a route that has a policy for that.
#[derive(Clone, Debug)]
pub struct Crossing<'a> {
    cors: &'a Cors,
    origin: HeaderValue,
    is_allowed: bool,
}

impl<'a> Crossing<'a> {
    /// That of a request, if it is one.
    pub fn of(cors: Option<&'a Cors>, headers: &HeaderMap) -> Option<Self> {
        let cors = cors?;
        let origin = headers.get(ORIGIN).filter(|origin| !origin.is_empty())?;
        let is_allowed = origin.to_str().is_ok_and(|origin| cors.origins.has(origin));
        Some(Self {
            cors,
            origin: origin.clone(),
            is_allowed,
        })
    }

    /// The answer, if a browser only asks whether it may ask.
    pub fn preflight(&self, request: &Intake) -> Option<Response<Download>> {
        let asked = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let method = asked.filter(|method| request.method == Method::OPTIONS && !method.is_empty())?;
        if !self.is_allowed && self.cors.forwards_unmatched() {
            return None;
        }
        let mut response = Response::new(Download::whole(Bytes::new()));
        let headers = response.headers_mut();
        let mut tell = |name: HeaderName, list: &CorsList, asked: Option<&HeaderValue>| match list {
            CorsList::Nothing => {}
            CorsList::Only(these) => drop(headers.insert(name, these.clone())),
            CorsList::Asked => {
                let asked = asked.cloned().unwrap_or(HeaderValue::from_static(""));
                headers.insert(name, asked);
            }
        };
        tell(ACCESS_CONTROL_ALLOW_METHODS, &self.cors.methods, Some(method));
        let fields = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
        tell(ACCESS_CONTROL_ALLOW_HEADERS, &self.cors.headers, fields);
        if self.cors.lets_credentials() {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, YES);
        }
        if let Some(age) = &self.cors.max_age {
            headers.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
        }
        self.allow(headers);
        Some(response)
    }

    /// Tells the browser what its page may do with an answer.
    pub fn allow(&self, headers: &mut HeaderMap) {
        if !self.is_allowed {
            return;
        }
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
        if self.cors.lets_credentials() {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, YES);
        }
        if let Some(fields) = &self.cors.exposed {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, fields.clone());
        }
    }
}
