//! What is between TCP and HTTP: `transport_socket`, and `transport_socket_matches`, which go by what endpoints say of themselves.
//!
//! Below them all istiod has a socket that leads into Envoy's own listener of HBONE. That is how Envoy wires it: here the endpoint's address says that it
//! is reached by HBONE.

use prost_types::value::Kind;
use underpass_config::http::{
    KeyPairFiles, Labels, NameKind, NameMatch, ProxyProtocol, Roots, ServerNames, UpstreamTls,
};
use underpass_config::waypoint::EndpointTransport;

use super::super::inspection::type_name;
use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{required_text_match, text_match, unpack};
use super::AskedNames;
use crate::proto::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use crate::proto::envoy::config::core::v3 as base;
use crate::proto::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use crate::proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use crate::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use base::proxy_protocol_config::Version;
use base::transport_socket::ConfigType;
use tls::common_tls_context::ValidationContextType;
use tls::subject_alt_name_matcher::SanType;
use tls::tls_parameters::TlsProtocol;

/// The transports of a cluster, the first that an endpoint's labels have.
pub(super) fn translate(
    socket: Option<&base::TransportSocket>,
    matches: &[TransportSocketMatch],
    names: AskedNames,
) -> Result<Vec<(Labels, EndpointTransport)>, Refused> {
    let mut transports = each("transport_socket_matches", matches, |one| by_labels(one, names))?;
    let rest = match socket {
        None => EndpointTransport::Known {
            tls: None,
            proxy_protocol: None,
        },
        Some(socket) => transport(socket, names).at("transport_socket")?,
    };
    transports.push((Labels::default(), rest));
    Ok(transports)
}

fn by_labels(wire: &TransportSocketMatch, names: AskedNames) -> Result<(Labels, EndpointTransport), Refused> {
    let TransportSocketMatch {
        // A label in Envoy's statistics.
        name: _,
        r#match: labels,
        transport_socket,
    } = wire;
    let mut wanted = Vec::new();
    for (name, value) in labels.iter().flat_map(|labels| &labels.fields) {
        let Some(Kind::StringValue(value)) = &value.kind else {
            return Err(Refused::unsupported(
                "match",
                format!("a condition on `{name}` that is no text"),
            ));
        };
        wanted.push((name.as_str().into(), value.as_str().into()));
    }
    let labels = Labels::new(wanted);
    let socket = transport_socket
        .as_ref()
        .ok_or_else(|| Refused::missing("transport_socket"))?;
    // Sidecars' mutual TLS goes by the mesh's certificates, which is not for HTTP's endpoints to have.
    let is_sidecar = labels == Labels::new([("tlsMode".into(), "istio".into())]);
    let transport = match transport(socket, names) {
        Err(_) if is_sidecar => EndpointTransport::Sidecar,
        transport => transport.at("transport_socket")?,
    };
    Ok((labels, transport))
}

fn transport(socket: &base::TransportSocket, names: AskedNames) -> Result<EndpointTransport, Refused> {
    let base::TransportSocket {
        // The type decides.
        name: _,
        config_type,
    } = socket;
    let Some(ConfigType::TypedConfig(any)) = config_type else {
        return Err(Refused::missing("typed_config"));
    };
    let within = |inner: Option<&base::TransportSocket>| {
        let inner = inner.ok_or_else(|| Refused::missing(""))?;
        transport(inner, names)
    };
    match type_name(any) {
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport" => {
            let InternalUpstreamTransport {
                // What Envoy's listener of HBONE is told of the endpoint: its address.
                passthrough_metadata: _,
                transport_socket,
            } = unpack(Some(any)).at("typed_config")?;
            within(transport_socket.as_ref()).at("typed_config.transport_socket")
        }
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(EndpointTransport::Known {
            tls: None,
            proxy_protocol: None,
        }),
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            let ProxyProtocolUpstreamTransport {
                config,
                transport_socket,
            } = unpack(Some(any)).at("typed_config")?;
            let inner = within(transport_socket.as_ref()).at("typed_config.transport_socket")?;
            let version = version(config.as_ref()).at("typed_config.config")?;
            match inner {
                EndpointTransport::Known {
                    tls,
                    proxy_protocol: None,
                } => Ok(EndpointTransport::Known {
                    tls,
                    proxy_protocol: Some(version),
                }),
                _ => Err(Refused::unsupported(
                    "typed_config.transport_socket",
                    "another one of the same kind",
                )),
            }
        }
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            let context = unpack(Some(any)).at("typed_config")?;
            Ok(EndpointTransport::Known {
                tls: Some(upstream_tls(&context, names).at("typed_config")?),
                proxy_protocol: None,
            })
        }
        other => Err(Refused::unsupported("typed_config", format!("a `{other}`"))),
    }
}

fn version(config: Option<&base::ProxyProtocolConfig>) -> Result<ProxyProtocol, Refused> {
    let version = config.map_or(0, |base::ProxyProtocolConfig { version }| *version);
    match Version::try_from(version) {
        Ok(Version::V1) => Ok(ProxyProtocol::V1),
        Ok(Version::V2) => Ok(ProxyProtocol::V2),
        Err(_) => Err(Refused::unsupported("version", version)),
    }
}

fn upstream_tls(wire: &tls::UpstreamTlsContext, names: AskedNames) -> Result<UpstreamTls, Refused> {
    let tls::UpstreamTlsContext {
        common_tls_context,
        sni,
    } = wire;
    let common = common_tls_context
        .as_ref()
        .ok_or_else(|| Refused::missing("common_tls_context"))?;
    let server_name = match sni.as_str() {
        "" => {
            let why = "is missing, and names are not asked for as requests are (`auto_sni`)";
            only_if(names.are_asked_for, "sni", why)?;
            None
        }
        name => Some(name.into()),
    };
    let tls::CommonTlsContext {
        tls_params,
        // What is offered here is what the cluster's protocol needs.
        alpn_protocols: _,
        tls_certificate_sds_secret_configs,
        validation_context_type,
    } = common;
    check_versions(tls_params.as_ref()).at("common_tls_context.tls_params")?;
    let certificate =
        certificate(tls_certificate_sds_secret_configs).at("common_tls_context.tls_certificate_sds_secret_configs")?;
    let Some(ValidationContextType::CombinedValidationContext(combined)) = validation_context_type else {
        let why = "is missing: whose certificates are believed is not said";
        return Err(Refused::new("common_tls_context.combined_validation_context", why));
    };
    let (roots, names) = believed(combined, names).at("common_tls_context.combined_validation_context")?;
    Ok(UpstreamTls {
        server_name,
        roots,
        names,
        certificate,
    })
}

/// TLS 1.2 and 1.3, which are what there is.
fn check_versions(params: Option<&tls::TlsParameters>) -> Result<(), Refused> {
    let Some(tls::TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
    }) = params
    else {
        return Ok(());
    };
    let is = |version: i32, known: &[TlsProtocol]| known.iter().any(|known| *known as i32 == version);
    let least = is(
        *tls_minimum_protocol_version,
        &[TlsProtocol::TlsAuto, TlsProtocol::TlSv12],
    );
    only_if(least, "tls_minimum_protocol_version", "is not TLS 1.2")?;
    let most = is(
        *tls_maximum_protocol_version,
        &[TlsProtocol::TlsAuto, TlsProtocol::TlSv13],
    );
    only_if(most, "tls_maximum_protocol_version", "is not TLS 1.3")
}

/// Files, as istiod names them for whoever has them: `file-cert:CHAIN~KEY`.
fn certificate(configs: &[tls::SdsSecretConfig]) -> Result<Option<KeyPairFiles>, Refused> {
    let name = match configs {
        [] => return Ok(None),
        [one] => &one.name,
        several => return Err(Refused::unsupported("", format!("{} certificates", several.len()))),
    };
    let files = name.strip_prefix("file-cert:").and_then(|files| files.split_once('~'));
    match files {
        Some((chain, key)) => Ok(Some(KeyPairFiles {
            chain: chain.into(),
            key: key.into(),
        })),
        None => {
            let why = format!("is the secret `{name}`: certificates come from files (`file-cert:…`) here");
            Err(Refused::new("[0].name", why))
        }
    }
}

fn believed(
    combined: &tls::common_tls_context::CombinedCertificateValidationContext,
    asked: AskedNames,
) -> Result<(Roots, ServerNames), Refused> {
    let tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
    } = combined;
    let name = validation_context_sds_secret_config.as_ref().map(|secret| {
        let tls::SdsSecretConfig {
            name,
            // From where Envoy's agent has it; here it is a file.
            sds_config: _,
        } = secret;
        name.as_str()
    });
    let roots = match name {
        Some("file-root:system") => Roots::System,
        Some(name) if name.starts_with("file-root:") => Roots::File(name["file-root:".len()..].into()),
        Some(name) => {
            let why = format!("is the secret `{name}`: roots come from files (`file-root:…`) here");
            return Err(Refused::new("validation_context_sds_secret_config.name", why));
        }
        None => Roots::Anybody,
    };
    let Some(context) = default_validation_context else {
        return Ok((roots, unnamed(asked)));
    };
    let tls::CertificateValidationContext {
        match_subject_alt_names,
        match_typed_subject_alt_names,
    } = context;
    let any_kind = |wire: &_| {
        Ok(NameMatch {
            kind: None,
            text: text_match(wire)?,
        })
    };
    let mut names = each(
        "default_validation_context.match_subject_alt_names",
        match_subject_alt_names,
        any_kind,
    )?;
    let field = "default_validation_context.match_typed_subject_alt_names";
    names.extend(each(field, match_typed_subject_alt_names, typed_name)?);
    let names = match names.is_empty() {
        true => unnamed(asked),
        false => ServerNames::Matching(names),
    };
    Ok((roots, names))
}

fn unnamed(asked: AskedNames) -> ServerNames {
    match asked.are_verified {
        true => ServerNames::Asked,
        false => ServerNames::Any,
    }
}

fn typed_name(wire: &tls::SubjectAltNameMatcher) -> Result<NameMatch, Refused> {
    let tls::SubjectAltNameMatcher { san_type, matcher } = wire;
    let kind = match SanType::try_from(*san_type) {
        Ok(SanType::Dns) => NameKind::Dns,
        Ok(SanType::Uri) => NameKind::Uri,
        Ok(SanType::IpAddress) => NameKind::Ip,
        Ok(SanType::Email) => NameKind::Email,
        _ => return Err(Refused::unsupported("san_type", san_type)),
    };
    Ok(NameMatch {
        kind: Some(kind),
        text: required_text_match(matcher.as_ref()).at("matcher")?,
    })
}
