//! What a line says: a text, or JSON.

use std::fmt::{self, Write as _};

use crate::http::{Fact, Facts, Format, Limited};

/// Istio's default for texts (`meshConfig.accessLogEncoding: TEXT`; its documentation has it under "Default access log format").
pub const ISTIO_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \
    \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Its default for JSON (`accessLogEncoding: JSON`).
pub const ISTIO_JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
];

/// What stands in a text for what is not known.
const UNKNOWN: &str = "-";

/// How a line is written.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestFormat {
    /// As a text (`text_format`).
    Text {
        /// The text.
        format: Format,
        /// Nothing stands for what is not known, instead of `-` (`omit_empty_values`).
        omits_empty: bool,
    },
    /// As JSON (`json_format`).
    Json {
        /// The object.
        format: JsonFormat,
        /// What is not known is left out, instead of being `null` (`omit_empty_values`).
        omits_empty: bool,
    },
}

/// A value in JSON.
#[derive(Clone, PartialEq)]
pub enum JsonFormat {
    /// A text; one operator alone has its own type.
    Text(Format),
    /// What it always is: a number, or a boolean.
    Fixed(serde_json::Value),
    /// Fields, in their order.
    Object(Vec<(String, JsonFormat)>),
    /// A list.
    List(Vec<JsonFormat>),
}

impl fmt::Debug for JsonFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(format) => format.fmt(f),
            Self::Fixed(value) => write!(f, "{value}"),
            Self::Object(fields) => f
                .debug_map()
                .entries(fields.iter().map(|(name, value)| (name, value)))
                .finish(),
            Self::List(items) => f.debug_list().entries(items).finish(),
        }
    }
}

impl RequestFormat {
    /// The line of a request, with its end.
    pub fn line(&self, facts: &dyn Facts) -> String {
        let mut line = match self {
            Self::Text { format, omits_empty } => format.line(facts, unknown(*omits_empty)),
            Self::Json { format, omits_empty } => {
                let mut line = String::new();
                format.write(facts, *omits_empty, &mut line);
                line
            }
        };
        // Envoy leaves that to the format of a text, and Istio adds it.
        if !line.ends_with('\n') {
            line.push('\n');
        }
        line
    }

    pub(super) fn facts<'a>(&'a self, found: &mut dyn FnMut(&'a Fact)) {
        match self {
            Self::Text { format, .. } => format.facts().for_each(found),
            Self::Json { format, .. } => format.facts(found),
        }
    }
}

fn unknown(omits_empty: bool) -> &'static str {
    match omits_empty {
        true => "",
        false => UNKNOWN,
    }
}

impl JsonFormat {
    pub(super) fn facts<'a>(&'a self, found: &mut dyn FnMut(&'a Fact)) {
        match self {
            Self::Text(format) => format.facts().for_each(found),
            Self::Fixed(_) => {}
            Self::Object(fields) => fields.iter().for_each(|(_, value)| value.facts(found)),
            Self::List(items) => items.iter().for_each(|item| item.facts(found)),
        }
    }

    /// Whether it is there at all; if so, it is written.
    fn write(&self, facts: &dyn Facts, omits_empty: bool, out: &mut String) -> bool {
        match self {
            Self::Text(format) => match format.single() {
                Some(limited) => return single(limited, facts, omits_empty, out),
                None => quoted(&format.line(facts, unknown(omits_empty)), out),
            },
            Self::Fixed(value) => {
                let _ = write!(out, "{value}");
            }
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (Some(name.as_str()), value));
                let has_any = members(['{', '}'], fields, facts, omits_empty, out);
                return has_any || !omits_empty;
            }
            Self::List(items) => {
                let items = items.iter().map(|item| (None, item));
                let _ = members(['[', ']'], items, facts, omits_empty, out);
            }
        }
        true
    }
}

fn members<'a>(
    [open, close]: [char; 2],
    members: impl Iterator<Item = (Option<&'a str>, &'a JsonFormat)>,
    facts: &dyn Facts,
    omits_empty: bool,
    out: &mut String,
) -> bool {
    out.push(open);
    let mut is_first = true;
    for (name, value) in members {
        let before = out.len();
        if !is_first {
            out.push(',');
        }
        if let Some(name) = name {
            quoted(name, out);
            out.push(':');
        }
        match value.write(facts, omits_empty, out) {
            true => is_first = false,
            false => out.truncate(before),
        }
    }
    out.push(close);
    !is_first
}

fn single(limited: &Limited, facts: &dyn Facts, omits_empty: bool, out: &mut String) -> bool {
    match limited.alone(facts) {
        None if omits_empty => return false,
        None => out.push_str("null"),
        Some(number) if limited.fact.is_number() => out.push_str(&number),
        Some(text) => quoted(&text, out),
    }
    true
}

fn quoted(text: &str, out: &mut String) {
    let _ = write!(out, "{}", serde_json::Value::from(text));
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::http::Stage;

    struct Told;

    impl Facts for Told {
        fn tell(&self, fact: &Fact, _: &HeaderMap, out: &mut Vec<u8>) -> bool {
            match fact {
                Fact::Status => out.extend_from_slice(b"204"),
                Fact::Flags => out.extend_from_slice(b"UF,URX"),
                Fact::Request(..) => out.extend_from_slice(b"a\"b\xff"),
                _ => return false,
            }
            true
        }
    }

    fn text(text: &str) -> JsonFormat {
        JsonFormat::Text(Format::parse(text, Stage::Log).unwrap())
    }

    #[test]
    fn json_keeps_types_and_order() {
        let format = JsonFormat::Object(vec![
            ("status".to_owned(), text("%RESPONSE_CODE%")),
            ("said".to_owned(), text("%RESPONSE_CODE% %UPSTREAM_HOST%")),
            ("host".to_owned(), text("%UPSTREAM_HOST%")),
            ("agent".to_owned(), text("%REQ(user-agent)%")),
            (
                "nested".to_owned(),
                JsonFormat::Object(vec![("x".to_owned(), text("%ROUTE_NAME%"))]),
            ),
            (
                "list".to_owned(),
                JsonFormat::List(vec![text("%ROUTE_NAME%"), text("a"), JsonFormat::Fixed(3.into())]),
            ),
        ]);
        let line = |omits_empty| {
            RequestFormat::Json {
                format: format.clone(),
                omits_empty,
            }
            .line(&Told)
        };
        assert_eq!(
            line(false),
            r#"{"status":204,"said":"204 -","host":null,"agent":"a\"b�","nested":{"x":null},"list":[null,"a",3]}"#
                .to_owned()
                + "\n"
        );
        assert_eq!(
            line(true),
            r#"{"status":204,"said":"204 ","agent":"a\"b�","list":["a",3]}"#.to_owned() + "\n"
        );
    }

    #[test]
    fn istios_formats_are_ours() {
        assert!(Format::parse(ISTIO_TEXT, Stage::Log).is_ok());
        for (name, text) in ISTIO_JSON {
            assert!(Format::parse(text, Stage::Log).is_ok(), "{name}");
        }
    }
}
