//! What is told of the two workloads that a request is between, as Istio's filters of peer metadata leave it behind (`metadata_object.cc` of istio/proxy).
//!
//! In a format: `%FILTER_STATE(downstream_peer_obj:FIELD:namespace)%`, as istiod writes it; in an expression: `filter_state.downstream_peer.namespace`.
//! Labels of pods are not among it: the workload API, which an ambient mesh knows them by, does not tell them.

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerEnd {
    /// Who asks.
    Downstream,
    /// Whose endpoint was chosen.
    Upstream,
}

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerField {
    /// Its own name, usually the pod's.
    Name,
    /// Its namespace.
    Namespace,
    /// The name of what created it.
    Workload,
    /// What kind of thing that is: `deployment`, `cronjob`, `job` or `pod`.
    Type,
    /// Its canonical service.
    Service,
    /// The revision of that.
    Revision,
    /// Its application.
    App,
    /// The version of that.
    Version,
    /// Its cluster.
    Cluster,
    /// Its SPIFFE identity.
    Identity,
    /// Where it runs.
    Region,
    /// A zone of that.
    Zone,
}

impl PeerEnd {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Downstream, Self::Upstream];

    /// The name of the state that is there for its fields.
    fn state(self) -> &'static str {
        match self {
            Self::Downstream => "downstream_peer_obj",
            Self::Upstream => "upstream_peer_obj",
        }
    }
}

macro_rules! attribute {
    ($name:literal, $field:ident) => {
        (
            $name,
            PeerField::$field,
            [
                concat!("filter_state.downstream_peer.", $name),
                concat!("filter_state.upstream_peer.", $name),
            ],
        )
    };
}

/// The fields by Istio's names, and the attributes that they are, of who asks and of the endpoint.
pub const PEER_FIELDS: [(&str, PeerField, [&str; 2]); 12] = [
    attribute!("name", Name),
    attribute!("namespace", Namespace),
    attribute!("workload", Workload),
    attribute!("type", Type),
    attribute!("service", Service),
    attribute!("revision", Revision),
    attribute!("app", App),
    attribute!("version", Version),
    attribute!("cluster", Cluster),
    attribute!("identity", Identity),
    attribute!("region", Region),
    attribute!("availability_zone", Zone),
];

/// What the arguments of `FILTER_STATE` ask for; none: something that is not there.
pub(super) fn asked(arguments: &str) -> Option<(PeerEnd, PeerField)> {
    let (state, field) = arguments.split_once(":FIELD:")?;
    let end = PeerEnd::ALL.into_iter().find(|end| end.state() == state)?;
    let (_, field, _) = PEER_FIELDS.iter().find(|(name, ..)| *name == field)?;
    Some((end, *field))
}
