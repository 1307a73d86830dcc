//! What a listener of the protocol `http` serves: route tables, and the clusters that their routes lead to.
//!
//! **One idea.** Everything that can be decided when the configuration changes is decided here: domains are indexed, regular
//! expressions compiled, header edits parsed, weights added up. A request only compares. The order of the configuration decides
//! among routes, as in Envoy: the first that matches is taken.
//!
//! The words and their semantics are those of Envoy's `config.route.v3` and `config.cluster.v3`, so that what istiod sends a waypoint
//! can be held by the same types. A cluster's state (who is busy, whose turn it is) outlives updates that leave it as it is.

mod balancing;
mod breakers;
mod cluster;
mod connections;
mod cors;
mod discovery;
mod domains;
mod endpoint;
mod ext_authz;
mod fault;
mod filters;
mod hash_policy;
mod headers;
mod jwt;
mod loads;
mod made;
mod matching;
mod metrics;
mod mirror;
mod normalization;
mod operators;
mod outliers;
mod overrides;
mod path_index;
mod rate_limit;
mod rbac;
mod retry;
mod rewrite;
mod ring;
mod route;
mod table;
#[cfg(test)]
mod tests;
mod times;
mod tracing;
mod transport;

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;

pub use balancing::{Fallback, HttpBalancing, MaglevTable, PeakEwma, RingHash, SlowStart, Subsets};
pub use breakers::{Breakers, Held, Retries, Usage};
pub use cluster::{Cluster, ClusterSettings, UpstreamProtocol};
pub use connections::{ConnectionSettings, Ping, TcpKeepalive};
pub use cors::{Cors, CorsList, CorsOrigins};
pub use discovery::{Discovery, DnsDiscovery, DnsFamily, DnsKind, HostDiscovery, NamedEndpoint};
pub use domains::{BadDomain, Domain};
pub use endpoint::{ClusterEndpoint, EndpointSettings, Labels, Reach};
pub use ext_authz::{AuthzBody, AuthzProvider, AuthzService, ExtAuthz, HttpAuthz, ShadowMatch};
pub use fault::{Abort, Delay, Fault};
pub use filters::Filter;
pub use hash_policy::{HashCookie, HashPolicy, HashSource, Hashed, hash_request, hash_source};
pub use headers::{AppendAction, HeaderEdit, HeaderEdits, HeaderText, is_editable};
pub use jwt::{
    Audiences, BadKeys, ClaimToHeader, Curve, HeaderLocation, Issuers, Jwk, JwkMaterial, Jwks, JwksSource, Jwt,
    JwtProvider, JwtRule, Located, Locations, RemoteJwks, Requirement, claim_at, json_object,
};
pub use matching::{
    BadPattern, Field, Fraction, HeaderMatch, PathMatch, QueryMatch, RequestView, RouteMatch, TextMatch, part_pattern,
    whole_pattern,
};
pub use metrics::{AddedLabel, MetricSettings, RequestMetric, ServiceName};
pub use mirror::{Mirror, MirrorCounts, MirrorEnd};
pub use normalization::PathNormalization;
pub use operators::{
    BadFormat, Fact, Facts, Format, GrpcForm, Limited, PEER_FIELDS, Part, PeerEnd, PeerField, Stage, TimeFormat,
};
pub use outliers::{
    Action as OutlierAction, Consecutive, Detector, Event as OutlierEvent, FailurePercentage, Kind as OutlierKind,
    Outcome, OutlierSettings, Standing, SuccessRate,
};
pub use overrides::{Override, Overrides};
pub use rate_limit::{LocalRateLimit, TokenBucket, TokenRate};
pub use rbac::{
    Asking, BadTemplate, ClaimMatch, Condition, PathTemplate, Peer, Policy, Rbac, RuleAction, Rules, Ruling, Settled,
    ValueMatch,
};
pub use regex::Regex;
pub use retry::{ResetFormat, ResetHeader, RetryConditions, RetryPolicy, RetryWord};
pub use rewrite::{PathRewrite, Substitution};
pub use route::{
    ConnectMode, DirectResponse, Forward, Redirect, Route, RouteAction, RouteTable, VirtualHost, WeightedCluster,
};
pub use table::{LocalityWeights, PriorityLoad, Wish};
pub use times::{GrpcTimeout, StreamDuration, Times};
pub use tracing::{
    Decorator, MetadataTag, Propagation, Sampling, SpanDirection, SpanTag, TagValue, Tracing, TracingProvider,
};
pub use transport::{
    KeyPairFiles, NameKind, NameMatch, ProxyProtocol, Roots, ServerNames, Transport, UpstreamHbone, UpstreamTls,
};

use crate::waypoint::{Chain, Place};
use crate::{Identity, RequestLog, Text};

/// Route tables and clusters, by name. Each cluster that a route names is there.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// Route tables, which listeners name.
    pub tables: HashMap<Text, Arc<RouteTable>, RandomState>,
    /// Clusters, which routes name.
    pub clusters: HashMap<Text, Arc<Cluster>, RandomState>,
    /// To which of the chains a waypoint's tunnel leads, by where it was going; none: nothing is served.
    pub waypoint: Option<Arc<Place>>,
    /// Those of the chains of which there is more to say than a table of the same name does; why, where one is not understood.
    pub chains: HashMap<Text, Result<Arc<Chain>, Text>, RandomState>,
    /// As whom endpoints are asked that say themselves how they are reached ([`Reach`]); none: nobody asks them.
    pub client: Option<Identity>,
}

impl Http {
    /// The same, with the clusters, endpoints and rate limits of `before` where they are as they were: their state goes on.
    #[must_use]
    pub fn continuing(mut self, before: &Http) -> Self {
        for (name, cluster) in &mut self.clusters {
            if let Some(old) = before.clusters.get(name).filter(|old| !Arc::ptr_eq(old, cluster)) {
                *cluster = Cluster::continuing(cluster, old);
            }
        }
        for (name, table) in &mut self.tables {
            // One that is served already has its own.
            if let (Some(old), Some(table)) = (before.tables.get(name), Arc::get_mut(table)) {
                table.continues(old);
            }
        }
        self
    }

    /// The logs that tables, and chains of TCP, have of their own.
    pub fn logs(&self) -> impl Iterator<Item = &Arc<Vec<RequestLog>>> {
        fn of_chain(chain: &Chain) -> Option<&Arc<Vec<RequestLog>>> {
            match chain {
                Chain::Tcp(tcp) => tcp.logs.as_ref(),
                // Its table has them.
                Chain::Http(_) => None,
            }
        }
        let chains = self.chains.values().filter_map(|chain| chain.as_deref().ok());
        let tables = self.tables.values().filter_map(|table| table.logs.as_ref());
        tables.chain(chains.filter_map(of_chain))
    }

    /// Who is told of the spans of some table's requests.
    pub fn tracing_providers(&self) -> impl Iterator<Item = &Arc<TracingProvider>> {
        let tracing = self.tables.values().filter_map(|table| table.tracing.as_ref());
        tracing.map(|tracing| &tracing.provider)
    }
}
