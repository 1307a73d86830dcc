//! `RouteConfiguration`: virtual hosts and their routes.

use std::sync::Arc;

use underpass_config::http::{
    Decorator, DirectResponse, Domain, Overrides, Redirect, Route, RouteAction, RouteTable, Stage, VirtualHost,
};

use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{port, status};
use super::{Everywhere, action, edits, overrides, route_match};
use crate::proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use crate::proto::envoy::config::route::v3 as wire;
use http::StatusCode;
use wire::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use wire::route::Action;

pub(super) fn table(
    wire: &wire::RouteConfiguration,
    chain: &str,
    everywhere: &Everywhere,
) -> Result<RouteTable, Refused> {
    let wire::RouteConfiguration {
        // Its chain's name; chains of workloads have one together.
        name: _,
        virtual_hosts,
        // A route to a cluster that is not there answers, and is no mistake.
        validate_clusters: _,
        // A bound on answers of the configuration, which has come whole.
        max_direct_response_body_size_bytes: _,
    } = wire;
    let hosts = each("virtual_hosts", virtual_hosts, |host| virtual_host(host, everywhere))?;
    Ok(RouteTable::new(chain.into(), hosts))
}

fn virtual_host(wire: &wire::VirtualHost, everywhere: &Everywhere) -> Result<(Vec<Domain>, VirtualHost), Refused> {
    let wire::VirtualHost {
        name,
        domains,
        routes,
        request_headers_to_add,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_remove,
        typed_per_filter_config,
    } = wire;
    if let Some(filter) = typed_per_filter_config.keys().next() {
        return Err(Refused::unsupported(
            "typed_per_filter_config",
            format!("for `{filter}`"),
        ));
    }
    let domains = each("domains", domains, |text: &String| {
        text.parse::<Domain>()
            .map_err(|why| Refused::new("", format!("`{text}` {why}")))
    })?;
    let host = VirtualHost {
        name: name.as_str().into(),
        routes: each("routes", routes, |wire| route(wire, everywhere).map(Arc::new))?,
        request_headers: edits(Stage::Request, request_headers_to_add, request_headers_to_remove)
            .at("request_headers_to_add")?,
        response_headers: edits(Stage::Response, response_headers_to_add, response_headers_to_remove)
            .at("response_headers_to_add")?,
    };
    Ok((domains, host))
}

fn route(wire: &wire::Route, everywhere: &Everywhere) -> Result<Route, Refused> {
    let wire::Route {
        name,
        r#match: matched,
        action,
        // The object that it comes from.
        metadata: _,
        decorator,
        request_headers_to_add,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_remove,
        typed_per_filter_config,
    } = wire;
    let matches = matched.as_ref().ok_or_else(|| Refused::missing("match"))?;
    let overrides = overrides::translate(typed_per_filter_config).at("typed_per_filter_config")?;
    let action = match action {
        Some(Action::Route(forward)) => {
            let mut forward = action::forward(forward, everywhere).at("route")?;
            forward.fault = overrides.fault;
            forward.cors = overrides.cors.map(Arc::new);
            RouteAction::Forward(Box::new(forward))
        }
        Some(other) => {
            // Envoy does it before anybody is redirected; here it belongs to what goes on.
            let is_plain = overrides.fault.is_none() && overrides.cors.is_none();
            only_if(
                is_plain,
                "typed_per_filter_config",
                "is of a route that goes nowhere, which is not supported",
            )?;
            match other {
                Action::Redirect(redirect_to) => RouteAction::Redirect(redirect(redirect_to).at("redirect")?),
                Action::DirectResponse(answer) => RouteAction::Direct(direct(answer).at("direct_response")?),
                Action::Route(_) => return Err(Refused::missing("action")),
            }
        }
        None => return Err(Refused::missing("action")),
    };
    Ok(Route {
        name: name.as_str().into(),
        matches: route_match(matches).at("match")?,
        decorator: decorator.as_ref().map(|wire::Decorator { operation }| Decorator {
            operation: operation.as_str().into(),
            propagates: true,
        }),
        action,
        overrides: Overrides::default(),
        request_headers: edits(Stage::Request, request_headers_to_add, request_headers_to_remove)
            .at("request_headers_to_add")?,
        response_headers: edits(Stage::Response, response_headers_to_add, response_headers_to_remove)
            .at("response_headers_to_add")?,
    })
}

fn redirect(wire: &wire::RedirectAction) -> Result<Redirect, Refused> {
    let wire::RedirectAction {
        host_redirect,
        port_redirect,
        path_rewrite_specifier,
        response_code,
        scheme_rewrite_specifier,
        strip_query,
    } = wire;
    only_if(!strip_query, "strip_query", "is true, which is not supported")?;
    let status = match RedirectResponseCode::try_from(*response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(Refused::unsupported("response_code", response_code)),
    };
    let scheme = match scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.clone()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
    };
    let (mut path, mut prefix) = (None, None);
    match path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(whole)) => path = Some(whole.clone()),
        Some(PathRewriteSpecifier::PrefixRewrite(new)) => prefix = Some(new.clone()),
        None => {}
    }
    let said = |text: &Option<String>| text.as_ref().filter(|text| !text.is_empty()).cloned();
    Ok(Redirect {
        status,
        scheme,
        host: Some(host_redirect.clone()).filter(|host| !host.is_empty()),
        port: match port_redirect {
            0 => None,
            number => Some(port(*number).at("port_redirect")?),
        },
        // Envoy's: an empty one says nothing.
        path: said(&path),
        prefix,
    })
}

fn direct(wire: &wire::DirectResponseAction) -> Result<DirectResponse, Refused> {
    let wire::DirectResponseAction { status: code, body } = wire;
    let body = match body {
        None => String::new(),
        Some(DataSource {
            specifier: Some(Specifier::InlineString(text)),
        }) => text.clone(),
        Some(DataSource {
            specifier: Some(Specifier::InlineBytes(bytes)),
        }) => {
            String::from_utf8(bytes.clone()).map_err(|_| Refused::new("body", "is no text, which is not supported"))?
        }
        Some(_) => return Err(Refused::unsupported("body", "not in the configuration")),
    };
    Ok(DirectResponse {
        status: status(*code).at("status")?,
        body,
    })
}
