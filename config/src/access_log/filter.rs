//! Which requests have a line: by the status, by flags, by an expression. All that are said have to hold (Envoy's `and_filter`, as Istio writes it).

use std::ops::RangeInclusive;

use http::HeaderMap;
use serde::{Serialize, Serializer};

use super::Expression;
use crate::Text;
use crate::http::{Fact, Facts};

/// What all of has to hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LogFilter {
    /// The status is in one of these; none are said: whatever it is. That of a request without an answer is 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status_codes: Vec<RangeInclusive<u16>>,
    /// One of these flags is set, or, if there are none in it, any; none: whatever there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_flags: Option<Vec<Text>>,
    /// It is true.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_written")]
    pub expression: Option<Expression>,
}

fn as_written<S: Serializer>(expression: &Option<Expression>, serializer: S) -> Result<S::Ok, S::Error> {
    expression.as_ref().map(Expression::text).serialize(serializer)
}

/// Envoy's flags, in short and in long, at the place of their bit (`StreamInfo::CoreResponseFlag`).
pub const RESPONSE_FLAGS: [(&str, &str); 30] = [
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("DC", "DownstreamConnectionTermination"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
    ("UDO", "UnconditionalDropOverload"),
];

/// A fact as a text; nothing, if it is not known.
pub(super) fn told(fact: &Fact, facts: &dyn Facts) -> Option<String> {
    let mut out = Vec::new();
    let is_known = facts.tell(fact, &HeaderMap::new(), &mut out);
    is_known.then(|| String::from_utf8_lossy(&out).into_owned())
}

impl LogFilter {
    /// Whether every request passes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a request has a line.
    pub fn passes(&self, facts: &dyn Facts) -> bool {
        self.has_status(facts)
            && self.has_flag(facts)
            && self.expression.as_ref().is_none_or(|told| told.is_true(facts))
    }

    fn has_status(&self, facts: &dyn Facts) -> bool {
        if self.status_codes.is_empty() {
            return true;
        }
        let status = told(&Fact::Status, facts).and_then(|status| status.parse::<u16>().ok());
        let status = status.unwrap_or(0);
        self.status_codes.iter().any(|range| range.contains(&status))
    }

    fn has_flag(&self, facts: &dyn Facts) -> bool {
        let Some(wanted) = &self.response_flags else {
            return true;
        };
        let flags = told(&Fact::Flags, facts).filter(|flags| flags != "-");
        flags.is_some_and(|flags| {
            wanted.is_empty()
                || flags
                    .split(',')
                    .any(|flag| wanted.iter().any(|wanted| **wanted == *flag))
        })
    }

    pub(super) fn facts<'a>(&'a self, found: &mut dyn FnMut(&'a Fact)) {
        if let Some(expression) = &self.expression {
            expression.facts().for_each(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Told(u16, &'static str);

    impl Facts for Told {
        fn tell(&self, fact: &Fact, _: &HeaderMap, out: &mut Vec<u8>) -> bool {
            match fact {
                Fact::Status => out.extend_from_slice(self.0.to_string().as_bytes()),
                Fact::Flags => out.extend_from_slice(self.1.as_bytes()),
                _ => return false,
            }
            true
        }
    }

    #[test]
    fn all_that_is_said_has_to_hold() {
        let errors = LogFilter {
            status_codes: vec![400..=499, 503..=503],
            ..LogFilter::default()
        };
        let is_logged = [0, 200, 399, 400, 499, 500, 503].map(|status| errors.passes(&Told(status, "-")));
        assert_eq!(is_logged, [false, false, false, true, true, false, true]);
        let flags = |flags: &[&str]| LogFilter {
            response_flags: Some(flags.iter().map(|flag| (*flag).into()).collect()),
            ..errors.clone()
        };
        for (wanted, told, passes) in [
            (&["UF"][..], Told(503, "UF,URX"), true),
            (&["URX", "NR"], Told(503, "UF,URX"), true),
            (&["U"], Told(503, "UF,URX"), false),
            (&["UF"], Told(200, "UF"), false),
            (&["UF"], Told(503, "-"), false),
            (&[], Told(503, "-"), false),
            (&[], Told(503, "UH"), true),
        ] {
            assert_eq!(flags(wanted).passes(&told), passes, "{wanted:?} {} {}", told.0, told.1);
        }
        assert!(LogFilter::default().passes(&Told(0, "-")));
    }
}
