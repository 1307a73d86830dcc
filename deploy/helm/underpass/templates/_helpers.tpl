{{- /* Labels of every object. */ -}}
{{- define "underpass.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/name: underpass
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: underpass
{{- end }}

{{- define "underpass.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The Gateway that the waypoint is of; its Service, account and DaemonSet are named alike. */ -}}
{{- define "underpass.gateway" -}}
{{ .Values.waypoint.gateway.name | default .Release.Name }}
{{- end }}

{{- define "underpass.node" -}}
{{ .Release.Name }}-node
{{- end }}

{{- define "underpass.istiod" -}}
{{- with .Values.istio -}}
{{ .address | default (printf "istiod%s.%s.svc:15012" (empty .revision | ternary "" (printf "-%s" .revision)) .namespace) }}
{{- end -}}
{{- end }}

{{- /* What differs from pod to pod, and what the mesh is: `underpass run --help` says which setting each stands for. */ -}}
{{- define "underpass.environment" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: INSTANCE_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: SERVICE_ACCOUNT
  valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}
- name: XDS_ADDRESS
  value: {{ include "underpass.istiod" . | quote }}
- name: CLUSTER_ID
  value: {{ .Values.istio.clusterId | quote }}
- name: TRUST_DOMAIN
  value: {{ .Values.istio.trustDomain | quote }}
{{- with .Values.istio.network }}
- name: NETWORK
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{- /* Who the pod is to istiod, and how istiod is known. */ -}}
{{- define "underpass.volumeMounts" -}}
- {name: istio-token, mountPath: /var/run/secrets/tokens, readOnly: true}
- {name: istio-ca, mountPath: /var/run/secrets/istio, readOnly: true}
- {name: config, mountPath: /etc/underpass, readOnly: true}
{{- end }}

{{- define "underpass.volumes" -}}
- name: istio-token
  projected:
    sources:
    - serviceAccountToken: {path: istio-token, audience: istio-ca, expirationSeconds: 43200}
- name: istio-ca
  configMap: {name: istio-ca-root-cert}
{{- end }}

{{- /* Of a container that carries traffic: no privilege of any kind. */ -}}
{{- define "underpass.unprivileged" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* By which a Prometheus without the operator finds metrics, as those of Istio's own proxies. */ -}}
{{- define "underpass.annotations" -}}
{{- $found := dict "prometheus.io/scrape" "true" "prometheus.io/port" "15020" "prometheus.io/path" "/stats/prometheus" }}
{{- merge (dict) .given (.root.Values.podMonitor.enabled | ternary (dict) $found) | toYaml }}
{{- end }}

{{- /* Where on a node pods go. */ -}}
{{- define "underpass.placement" -}}
nodeSelector:
  {{- merge (dict "kubernetes.io/os" "linux") .nodeSelector | toYaml | nindent 2 }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* No process says that it lives: one that does not has ended, and one that is killed while it serves resets what it carries. */ -}}
{{- define "underpass.readiness" -}}
httpGet: {path: /healthz/ready, port: readiness}
periodSeconds: 2
failureThreshold: 2
timeoutSeconds: 1
{{- end }}
