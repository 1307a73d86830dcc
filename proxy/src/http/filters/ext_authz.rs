//! An authorization server, asked for a request.
//!
//! **One idea.** What a server says is a [`Verdict`], whichever protocol it says it by. A request passes by a verdict that lets it, or, where the configuration says so, when
//! there is none for reasons that are the server's; a request that can't be asked about does not pass.

mod changes;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod grpc;
mod http;

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONTENT_TYPE, HeaderValue};
use ::http::{HeaderMap, Response, StatusCode};
use bytes::Bytes;
use hyper::body::Body;
use serde_json::{Map, Value};
use tokio::time::Instant;
use underpass_config::Text;
use underpass_config::http::{AuthzProvider, AuthzService, ExtAuthz, Forward, RouteAction};

pub use changes::ResponseChanges;
use changes::{Changes, Mutation, change_headers};

use super::{Passing, Refused};
use crate::http::arriving::Arriving;
use crate::http::download::Download;
use crate::http::failed::Failed;
use crate::http::flags::Flags;
use crate::http::forward::{Job, Limits};
use crate::http::inquiry::{Told, Untold};
use crate::http::intake::Intake;
use crate::http::kept::{Kept, NotKept};
use crate::http::reply::{Audience, closing, reply, reply_with};
use crate::http::upload::Upload;
use crate::telemetry::Check;

/// Of an answer, so much is read; who says more, has said nothing. A body that a client is refused with is in it.
const MOST_TOLD: usize = 1 << 20;
/// What a question's body costs beside its bytes, while it may be sent again.
const PIECE: usize = 1024;

/// What a server says.
#[derive(Debug)]
enum Verdict {
    /// It may pass, with these changes.
    Allowed(Changes),
    /// It may not.
    Denied(Denial),
    /// It can't say; perhaps what the client is then to be told.
    Failed(Option<Denial>),
}

/// What a client is told that may not pass.
#[derive(Debug)]
struct Denial {
    /// None: as the configuration says.
    status: Option<StatusCode>,
    headers: Vec<Mutation>,
    body: Bytes,
    /// What it tells of the request besides.
    metadata: Map<String, Value>,
}

/// Why there is no verdict.
enum Unasked {
    /// The server has not said anything that can be understood; why.
    Failed(String),
    /// The question can't be written: that is the client's doing.
    Unaskable,
}

impl From<Untold> for Unasked {
    fn from(untold: Untold) -> Self {
        match untold {
            Untold::Unwritable => Self::Unaskable,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Asks, if the filter is for this request. What changes responses is added to the findings.
///
/// # Errors
/// The answer to a request that does not pass.
pub async fn pass(filter: &ExtAuthz, context: &[(Text, Text)], passing: &mut Passing<'_>) -> Result<(), Refused> {
    let asks = |enabled_by: &underpass_config::http::ShadowMatch| enabled_by.holds(&passing.findings.shadow);
    if !filter.enabled_by.as_ref().is_none_or(asks) {
        return Ok(());
    }
    if passing.record.route.is_none() && !passing.findings.is_edited {
        // As in Envoy, nobody is asked about what leads nowhere: it then has to stay so.
        passing.findings.is_lost = true;
        return Ok(());
    }
    let provider = &*filter.provider;
    let beginning = hold(provider, passing).await?;
    let question = Asked {
        beginning: beginning.as_ref(),
        context,
    };
    let asked_at = Instant::now();
    let verdict = ask(provider, passing, question).await;
    passing.follow(provider, verdict, asked_at.elapsed())
}

/// What the server is told of the body, which is kept.
async fn hold(provider: &AuthzProvider, passing: &mut Passing<'_>) -> Result<Option<Bytes>, Refused> {
    let Some(told) = provider.request_body else {
        return Ok(None);
    };
    if passing.body.is_end_stream() || passing.intake.switch.is_some() {
        return Ok(None);
    }
    let patience = match passing.record.route.as_ref().map(|(_, route)| &route.action) {
        Some(RouteAction::Forward(forward)) => forward.idle_timeout,
        _ => Some(Forward::DEFAULT_IDLE_TIMEOUT),
    };
    let body = std::mem::replace(passing.body, Arriving::Nothing);
    let has_to_end = !told.allow_partial_message;
    match Kept::of(body, told.max_request_bytes, has_to_end, patience).await {
        Ok((kept, beginning)) => {
            *passing.body = Arriving::Kept(kept);
            Ok(Some(beginning))
        }
        Err(why) => Err(passing.not_kept(why).into()),
    }
}

/// What a server is told beside the head of a request.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// The beginning of its body.
    beginning: Option<&'a Bytes>,
    /// What its route says (for servers of gRPC).
    context: &'a [(Text, Text)],
}

async fn ask(provider: &AuthzProvider, passing: &mut Passing<'_>, asked: Asked<'_>) -> Result<Verdict, Unasked> {
    let (question, body) = match &provider.service {
        AuthzService::Grpc(authority) => grpc::question(provider, authority, passing, asked),
        AuthzService::Http(service) => http::question(provider, service, passing, asked.beginning)?,
    };
    let told = passing.inquire(provider, &question, body).await?;
    Ok(match &provider.service {
        AuthzService::Grpc(_) => {
            let none = || Unasked::Failed("its answer is no CheckResponse".to_owned());
            grpc::verdict(&told).ok_or_else(none)?
        }
        AuthzService::Http(service) => http::verdict(service, told),
    })
}

impl Passing<'_> {
    async fn inquire(&self, provider: &AuthzProvider, question: &Intake, body: Bytes) -> Result<Told, Unasked> {
        let route = provider.forward.choose(0);
        // One that an update has taken away is not asked.
        let none = || Unasked::Failed(format!("there is no cluster {}", route.cluster));
        let cluster = self.snapshot.config.http.cluster(&route.cluster).ok_or_else(none)?;
        let room = body.len() + PIECE;
        let upload = match body.is_empty() {
            true => Upload::new(Arriving::Nothing, 0, false),
            false => Upload::new(Arriving::Kept(Kept::whole(body)), room, false),
        };
        let job = Job {
            connection: self.connection,
            forward: &provider.forward,
            cluster,
            labels: &route.labels,
            intake: question,
            upload: &upload,
            audience: Audience::of(&question.method, &question.headers),
            limits: Limits {
                timeout: provider.forward.timeout,
                lasts_until: None,
            },
        };
        Ok(job.inquire(provider.forward.timeout, MOST_TOLD).await?)
    }

    /// What becomes of the request.
    fn follow(
        &mut self,
        provider: &AuthzProvider,
        verdict: Result<Verdict, Unasked>,
        took: Duration,
    ) -> Result<(), Refused> {
        const DETAILS: &str = "ext_authz_error";
        let (told, details) = match verdict {
            Ok(Verdict::Allowed(mut changes)) => {
                self.note_metadata(std::mem::take(&mut changes.metadata), Some(took));
                let is_edit = changes.are_of_request();
                return match changes.apply(self.intake) {
                    Ok(of_response) => {
                        self.count(provider, Check::Allowed);
                        self.findings.response.add(of_response);
                        self.findings.is_edited |= is_edit && provider.clear_route_cache;
                        Ok(())
                    }
                    Err(_) => Err(self.invalid(provider).into()),
                };
            }
            Ok(Verdict::Denied(mut denial)) => {
                self.note_metadata(std::mem::take(&mut denial.metadata), None);
                self.count(provider, Check::Denied);
                return Err(self.denied(provider, denial, "ext_authz_denied").into());
            }
            Ok(Verdict::Failed(_)) | Err(Unasked::Failed(_)) if provider.failure_mode_allow => {
                self.count(provider, Check::FailureModeAllowed);
                return Ok(());
            }
            Ok(Verdict::Failed(told)) => (told, DETAILS.to_owned()),
            Err(Unasked::Failed(why)) => (None, format!("{DETAILS}: {why}")),
            Err(Unasked::Unaskable) => (None, format!("{DETAILS}: {}", Untold::Unwritable)),
        };
        self.count(provider, Check::Failed);
        let denial = told.unwrap_or(Denial {
            status: None,
            headers: Vec::new(),
            body: Bytes::new(),
            metadata: Map::new(),
        });
        Err(self.denied(provider, denial, &details).into())
    }

    /// What a server tells besides is for rules and logs (`enable_dynamic_metadata_ingestion`, which is Envoy's default). Of what two servers tell under one name, the
    /// latter counts.
    fn note_metadata(&mut self, mut told: Map<String, Value>, took: Option<Duration>) {
        if told.is_empty() {
            return;
        }
        if let Some(took) = took {
            let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            told.insert("ext_authz_duration".to_owned(), millis.into());
        }
        let before = self.findings.metadata.take();
        let mut all = match before.as_deref() {
            Some(Value::Object(before)) => before.clone(),
            _ => Map::new(),
        };
        all.extend(told);
        self.findings.metadata = Some(Arc::new(Value::Object(all)));
    }

    fn count(&self, provider: &AuthzProvider, check: Check) {
        let telemetry = &self.connection.session.node.telemetry;
        telemetry.count_check(&provider.name, check);
    }

    /// The server has asked for changes that no request can have.
    fn invalid(&mut self, provider: &AuthzProvider) -> Response<Download> {
        self.count(provider, Check::Invalid);
        self.record.flags.add(Flags::UNAUTHORIZED_EXTERNAL);
        self.record.details = "ext_authz_invalid".into();
        reply(self.audience, StatusCode::INTERNAL_SERVER_ERROR, Bytes::new())
    }

    fn denied(&mut self, provider: &AuthzProvider, denial: Denial, details: &str) -> Response<Download> {
        self.record.flags.add(Flags::UNAUTHORIZED_EXTERNAL);
        self.record.details = details.into();
        let has_body = !denial.body.is_empty();
        let status = denial.status.unwrap_or(provider.status_on_error);
        let mut response = reply(self.audience, status, denial.body);
        let headers = response.headers_mut();
        let own = match has_body && !self.audience.is_grpc {
            // The server may say what its text is.
            true => None,
            false => Some(headers.get(CONTENT_TYPE).cloned()),
        };
        if change_headers(headers, &denial.headers).is_err() {
            return self.invalid(provider);
        }
        match own {
            None => {}
            Some(Some(kind)) => drop(response.headers_mut().insert(CONTENT_TYPE, kind)),
            Some(None) => drop(response.headers_mut().remove(CONTENT_TYPE)),
        }
        response
    }

    /// The answer to a request whose body could not be told.
    fn not_kept(&mut self, why: NotKept) -> Response<Download> {
        let failed = match why {
            NotKept::TooLong => {
                let (status, text) = (StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large");
                Failed::new(status, Flags::default(), "request_payload_too_large", text)
            }
            NotKept::Idle => Failed::idle(false),
            NotKept::Broken => {
                let details = "downstream_remote_disconnect";
                Failed::new(StatusCode::BAD_REQUEST, Flags::CLIENT_GONE, details, "")
            }
        };
        self.record.flags.add(failed.flags);
        self.record.details = failed.details.into();
        let response = reply_with(self.audience, (failed.status, failed.grpc), Bytes::from(failed.text));
        match self.intake.version < ::http::Version::HTTP_2 {
            // The rest would be taken for a request.
            true => closing(response),
            false => response,
        }
    }
}

/// A text as protobuf has it: what is none in UTF-8 is an exclamation mark, byte for byte (as Envoy does it).
fn sanitized(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

/// Tells whether a body was told whole; only where one was told at all. What a client says in its place is not passed on.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// The client's header fields by name, in which those of one name are one. `may_be_told`: by their names.
fn told_headers(headers: &HeaderMap, may_be_told: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let names = headers
        .keys()
        .filter(|name| *name != PARTIAL_BODY && may_be_told(name.as_str()));
    let told = names.map(|name| {
        let values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
        let joined = values.collect::<Vec<_>>().join(&b","[..]);
        (name.to_string(), sanitized(&joined))
    });
    told.collect()
}

/// What is told of a body: the beginning, and whether there was more.
fn told_body(provider: &AuthzProvider, beginning: &Bytes) -> (Bytes, &'static str) {
    let most = provider.request_body.map_or(0, |told| told.max_request_bytes);
    let is_cut = beginning.len() > most;
    let told = beginning.slice(..beginning.len().min(most));
    (told, if is_cut { "true" } else { "false" })
}
