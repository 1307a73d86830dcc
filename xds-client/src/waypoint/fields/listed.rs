[
    // Names that only people, or Envoy's statistics, go by.
    irrelevant("envoy.config.cluster.v3.Cluster.alt_stat_name", "a name in Envoy's statistics"),
    irrelevant("envoy.config.cluster.v3.Cluster.CustomClusterType.name", "a label: the type decides"),
    irrelevant("envoy.config.cluster.v3.Cluster.TransportSocketMatch.name", "a label"),
    irrelevant("envoy.config.cluster.v3.Filter.name", "a label: the type decides"),
    irrelevant("envoy.config.core.v3.TransportSocket.name", "a label: the type decides"),
    irrelevant("envoy.config.core.v3.TypedExtensionConfig.name", "a label: the type decides"),
    irrelevant("envoy.config.listener.v3.Filter.name", "a label: the type decides"),
    irrelevant("envoy.config.listener.v3.ListenerFilter.name", "a label: the type decides"),
    irrelevant("envoy.config.accesslog.v3.AccessLog.name", "a label: the type decides"),
    irrelevant("envoy.config.trace.v3.Tracing.Http.name", "a label: the type decides"),
    irrelevant("envoy.config.accesslog.v3.ExtensionFilter.name", "a label: the type decides"),
    irrelevant("envoy.config.route.v3.RetryPolicy.RetryHostPredicate.name", "a label: the type decides"),
    irrelevant("xds.core.v3.TypedExtensionConfig.name", "a label: the type decides"),
    irrelevant(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter.name",
        "a label: the type decides",
    ),
    irrelevant(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.stat_prefix",
        "a name in Envoy's statistics",
    ),
    irrelevant("envoy.extensions.filters.network.rbac.v3.RBAC.stat_prefix", "a name in Envoy's statistics"),
    irrelevant("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.stat_prefix", "a name in Envoy's statistics"),
    irrelevant(
        "envoy.extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig.name",
        "those that share it share what DNS has answered; here all do",
    ),
    irrelevant("envoy.config.route.v3.RouteConfiguration.name", "its chain's name is the table's"),
    // Where it comes from.
    irrelevant("envoy.config.core.v3.Metadata.filter_metadata[istio.config]", "the object that it comes from"),
    irrelevant("envoy.config.core.v3.Metadata.filter_metadata[istio.subset]", "its name has it"),
    irrelevant("envoy.config.route.v3.Route.metadata", "the object that it comes from"),
    // How things come to Envoy.
    irrelevant("envoy.config.core.v3.ConfigSource.initial_fetch_timeout", "nobody waits: there are no endpoints until they come"),
    irrelevant(
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig.sds_config",
        "from where Envoy has its secrets; here the name is that of files",
    ),
    irrelevant("envoy.config.cluster.v3.Cluster.dns_jitter", "spreads questions, as times to live do here"),
    irrelevant(
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig.udp_max_queries",
        "a setting of the library that Envoy asks DNS by",
    ),
    // What is found out otherwise.
    wiring(
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport.passthrough_metadata",
        "tells Envoy's listener of HBONE of the endpoint",
    ),
    irrelevant(
        "envoy.config.listener.v3.ListenerFilter.filter_disabled",
        "what is spoken is found out only where something depends on it",
    ),
    irrelevant(
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector.initial_read_buffer_size",
        "how much of a connection Envoy looks at first",
    ),
    irrelevant(
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig.*",
        "messages of gRPC are counted in any case, and not by method",
    ),
    irrelevant("stats.PluginConfig.disable_host_header_fallback", "a host is never taken for a service's name here"),
    irrelevant(
        "envoy.config.route.v3.RetryPolicy.host_selection_retry_max_attempts",
        "how often Envoy draws for another endpoint; here it is looked for",
    ),
    irrelevant("envoy.config.route.v3.RouteConfiguration.validate_clusters", "a route to a cluster that is not there answers"),
    irrelevant(
        "envoy.config.route.v3.RouteConfiguration.max_direct_response_body_size_bytes",
        "a bound on answers that have come whole",
    ),
    irrelevant("envoy.config.core.v3.HttpUri.uri", "has to be a URI; of keys of tokens it is asked for, of authorization servers the request's host is"),
    irrelevant("envoy.config.core.v3.RuntimeUInt32.runtime_key", "there is no runtime that could say another"),
    irrelevant("envoy.config.core.v3.SubstitutionFormatString.json_format_options", "fields are sorted, as they are by default"),
    irrelevant(
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.alpn_protocols",
        "what the cluster's protocol needs is offered",
    ),
    irrelevant(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.http2_protocol_options",
        "that a client speaks HTTP/2 is found out",
    ),
    // Differences.
    irrelevant(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.server_name",
        "answers keep the `server` that the endpoint has said",
    ),
    irrelevant(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.proxy_100_continue",
        "`Expect: 100-continue` is answered by the proxy",
    ),
    // What only tells of requests.
    irrelevant(
        "envoy.config.listener.v3.Listener.access_log",
        "of connections that no chain is for; they have no line of their own",
    ),
    not_yet("envoy.config.route.v3.RouteAction.RequestMirrorPolicy.trace_sampled", "whether copies have spans"),
    not_yet(
        "envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig.filter_state_objects_to_log",
        "objects that Istio's filters leave in Envoy; servers of its access log service are not told of them (collectors of OpenTelemetry's are not by Envoy, either)",
    ),
]
