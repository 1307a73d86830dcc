//! Where we differ from Envoy, and why. What is not in this table is a mistake.

use super::cases::Case;
use super::client::Seen;

/// A difference that is meant.
pub(crate) struct Difference {
    /// Why it is.
    pub(crate) reason: &'static str,
    /// Takes it, and nothing else, out of what was seen of us and of Envoy.
    pub(crate) undo: fn(&Case, ours: &mut Seen, envoys: &mut Seen),
}

/// The table. A run over HTTP/1.1 shows each.
pub(crate) const DIFFERENCES: &[Difference] = &[
    Difference {
        reason: "What hyper's parser refuses it answers itself: with Envoy's status or its like, but without a text, and it closes.",
        undo: |_, ours, envoys| {
            let is_hypers = ours.header("server").is_none() && matches!(ours.status, 400 | 414 | 431);
            same_if(
                is_hypers && matches!(envoys.status, 400 | 426 | 431 | 501),
                ours,
                envoys,
            );
        },
    },
    Difference {
        reason: "A line that is folded is refused, as RFC 9112, section 5.2, lets a server do; Envoy unfolds it.",
        undo: |case, ours, envoys| {
            same_if(
                case.has("\r\n folded") && statuses(ours, envoys) == (400, 200),
                ours,
                envoys,
            );
        },
    },
    Difference {
        reason: "A request with several hosts, none, or a user's name for one is refused (RFC 9112, section 3.2); Envoy looks for a route.",
        undo: |case, ours, envoys| {
            let hosts = case.request.matches("\r\nhost:").count();
            let is_odd = hosts != 1 || case.has("host: \r\n") || case.has("host: user@");
            same_if(is_odd && statuses(ours, envoys) == (400, 404), ours, envoys);
        },
    },
    Difference {
        reason: "Of Content-Length and Transfer-Encoding hyper takes the latter and drops the former, of equal Content-Lengths it takes one (RFC 9112, \
                 section 6.3): the endpoint gets a message that is framed anew, in one way. Envoy refuses.",
        undo: |case, ours, envoys| {
            let lengths = case.request.matches("\r\ncontent-length:").count();
            let is_both = lengths > 0 && case.has("transfer-encoding: chunked");
            let told = |name: &str| ours.body.matches(name).count();
            let is_one = told("\ncontent-length: ") + told("\ntransfer-encoding: ") == 1 && !ours.body.contains(" | ");
            let is_it = (is_both || lengths > 1) && is_one && statuses(ours, envoys) == (200, 400);
            same_if(is_it, ours, envoys);
        },
    },
    Difference {
        reason: "The parser of URIs takes the fragment off; the endpoint gets none. Envoy refuses.",
        undo: |case, ours, envoys| {
            let is_it = case.has("#ment ") && statuses(ours, envoys) == (200, 400) && !ours.body.contains('#');
            same_if(is_it, ours, envoys);
        },
    },
    Difference {
        reason: "The codec sees a broken chunk only when the request is routed already; Envoy answers with a text.",
        undo: |case, ours, envoys| {
            let is_broken = case.has("\r\nzz\r\n") || case.has("helloXX0");
            same_if(is_broken && statuses(ours, envoys) == (400, 400), ours, envoys);
        },
    },
    Difference {
        reason: "An endpoint that does not switch protocols has answered as to any request, and the answer is passed on whole; Envoy cuts it off.",
        undo: |case, ours, envoys| {
            let is_cut = statuses(ours, envoys) == (200, 200) && envoys.body.is_empty();
            same_if(case.has("upgrade: websocket") && is_cut, ours, envoys);
        },
    },
    Difference {
        reason: "A response's fields that its Connection names end at this hop (RFC 9110, section 7.6.1); Envoy passes them on.",
        undo: |case, ours, envoys| {
            if case.has("x-do: hop") && !ours.headers.contains_key("x-private") {
                envoys.headers.remove("x-private");
            }
        },
    },
    Difference {
        reason: "To HEAD, Envoy adds the Transfer-Encoding that GET would have had; it may be left out (RFC 9110, section 9.3.2).",
        undo: |case, ours, envoys| {
            if case.is_head() && !ours.headers.contains_key("transfer-encoding") {
                envoys.headers.remove("transfer-encoding");
            }
        },
    },
    Difference {
        reason: "Envoy joins the values of some fields by commas, which means the same (RFC 9110, section 5.3).",
        undo: |case, ours, envoys| {
            let joined = [
                "accept",
                "user-agent",
                "content-type",
                "authorization",
                "x-forwarded-for",
            ];
            let is_twice = |name: &&str| case.request.matches(&format!("\r\n{name}: ")).count() > 1;
            if joined.iter().any(is_twice) {
                for seen in [ours, envoys] {
                    seen.body = seen.body.replace(" | ", ",");
                    seen.headers.remove("content-length");
                }
            }
        },
    },
    Difference {
        reason: "Whoever is answered before its body was asked for finds the connection closed: the rest of the body is never taken for a request. \
                 Envoy reads on if it has got all of it by then.",
        undo: |case, ours, envoys| {
            let has_body = case.has("content-length: ") || case.has("transfer-encoding: ");
            if has_body
                && ours.header("connection") == Some("close")
                && !ours.headers.contains_key("x-envoy-upstream-service-time")
            {
                envoys.headers.insert("connection".to_owned(), vec!["close".to_owned()]);
            }
        },
    },
    Difference {
        reason: "In another try Envoy tells the endpoint how much of the time is left, we tell the route's limit.",
        undo: |_, ours, envoys| {
            if ours.body.starts_with("attempt ") && !ours.body.starts_with("attempt 1\n") {
                without_line("x-envoy-expected-rq-timeout-ms: ", ours, envoys);
            }
        },
    },
    Difference {
        reason: "Who has no identity is told of by `-`. Envoy writes nothing then, and leaves the field as the client has sent it, which may be another's name.",
        undo: |_, ours, envoys| {
            let is_nobody = |seen: &Seen| seen.body.contains("\nx-told-peer: -\n");
            if is_nobody(ours) {
                without_line("x-told-peer: ", ours, envoys);
            }
            if ours.header("x-of-peer") == Some("-") {
                ours.headers.remove("x-of-peer");
            }
        },
    },
    Difference {
        reason: "Of the proxy's own answers %RESPONSE_CODE% is their status. Envoy writes 0 when it edits them: it notes the status later.",
        undo: |_, ours, envoys| {
            let is_it =
                envoys.header("x-of-code") == Some("0") && ours.header("x-of-code") == Some(&ours.status.to_string());
            if is_it {
                ours.headers.remove("x-of-code");
                envoys.headers.remove("x-of-code");
            }
        },
    },
    Difference {
        reason: "%UPSTREAM_REMOTE_PORT% is that of the endpoint that was tried last. Envoy knows none of one that could not be connected to.",
        undo: |case, ours, envoys| {
            if case.has(" /told/closed ") && !envoys.headers.contains_key("x-of-endpoint") {
                ours.headers.remove("x-of-endpoint");
            }
        },
    },
    Difference {
        reason: "Response flags are written in one order. Envoy writes them in that in which they came to be.",
        undo: |_, ours, envoys| {
            for seen in [ours, envoys] {
                for flags in seen.headers.get_mut("x-of-flags").into_iter().flatten() {
                    let mut all: Vec<&str> = flags.split(',').collect();
                    all.sort_unstable();
                    *flags = all.join(",");
                }
            }
        },
    },
    Difference {
        reason: "A client does not say how long its request may take: its route does.",
        undo: |case, ours, envoys| {
            if case.has("x-envoy-upstream-rq-timeout-ms") {
                without_line("x-envoy-expected-rq-timeout-ms: ", ours, envoys);
            }
        },
    },
];

/// What comes to these where policies are asked.
pub(crate) const BY_POLICY: &[Difference] = &[
    Difference {
        reason: "HTTP has no list of methods that are allowed (RFC 9110, section 16.1); Envoy's codec for HTTP/1.1 has one, that for HTTP/2 has none.",
        undo: |case, ours, envoys| {
            same_if(
                case.request.starts_with("DELETEX ") && envoys.status == 400,
                ours,
                envoys,
            )
        },
    },
    Difference {
        reason: "A method that is another's but for the case of its letters is refused: to policy it is not that one, to some servers it is. Envoy's                  codec for HTTP/2 takes it.",
        undo: |case, ours, envoys| {
            let is_misspelt = case.request.starts_with("get ");
            same_if(
                is_misspelt && ours.status == 400 && ours.body == "Bad Request",
                ours,
                envoys,
            );
        },
    },
    Difference {
        reason: "An address of IPv4 is the same in the writing of IPv6; to Envoy it is in no block of IPv4.",
        undo: |case, ours, envoys| {
            let is_mapped = case.has("x-forwarded-for: ::ffff:");
            same_if(
                is_mapped && [(200, 403), (403, 200)].contains(&statuses(ours, envoys)),
                ours,
                envoys,
            );
        },
    },
];

/// What comes to these with endpoints that speak HTTP/2.
pub(crate) const BY_HTTP2: &[Difference] = &[Difference {
    reason: "By HTTP/2 hyper says of a request without a body, where its method mostly has one, that its length is 0; that the stream has ended says the \
                 same (RFC 9113, section 8.1.1). Envoy leaves it out.",
    undo: |case, ours, envoys| {
        let is_said = |seen: &Seen| seen.body.contains("\ncontent-length: 0\n");
        let is_empty = |seen: &Seen| seen.body.contains(" HTTP/2\n") && seen.body.ends_with("\nbody 0: ");
        let is_it = is_said(ours) && !is_said(envoys) && is_empty(ours) && is_empty(envoys);
        if is_it && !case.has("\r\ncontent-length: ") {
            without_line("content-length: 0", ours, envoys);
        }
    },
}];

fn statuses(ours: &Seen, envoys: &Seen) -> (u16, u16) {
    (ours.status, envoys.status)
}

/// For differences that leave nothing to compare.
fn same_if(is_it: bool, ours: &Seen, envoys: &mut Seen) {
    if is_it {
        *envoys = ours.clone();
    }
}

/// Takes a line out of what the endpoint saw, and the length that goes with it.
fn without_line(line: &str, ours: &mut Seen, envoys: &mut Seen) {
    for seen in [ours, envoys] {
        let kept: Vec<&str> = seen.body.split('\n').filter(|told| !told.starts_with(line)).collect();
        seen.body = kept.join("\n");
        seen.headers.remove("content-length");
    }
}

/// What no two proxies, or no two runs, have in common.
pub(crate) fn without_the_incidental(mut seen: Seen) -> Seen {
    seen.headers.remove("date");
    // The endpoint's own is replaced by the proxy's, which is another's.
    if let Some(server) = seen.headers.get_mut("server") {
        for name in server
            .iter_mut()
            .filter(|name| ["envoy", "underpass"].contains(&name.as_str()))
        {
            *name = "PROXY".to_owned();
        }
    }
    if let Some(time) = seen.headers.get_mut("x-envoy-upstream-service-time") {
        *time = vec!["TIME".to_owned()];
    }
    let lines: Vec<&str> = seen
        .body
        .split('\n')
        .map(|line| match line.strip_prefix("x-request-id: ") {
            Some(id) if id.len() == 36 => "x-request-id: UUID",
            _ => line,
        })
        .collect();
    seen.body = lines.join("\n");
    // A response that was cut off: how much of it came is a matter of time.
    if !seen.is_whole {
        seen.body = "CUT OFF".to_owned();
        seen.headers.clear();
    }
    seen
}
