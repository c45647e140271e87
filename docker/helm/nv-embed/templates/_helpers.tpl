{{/* Names, labels, and what all pods have in common. */}}

{{- define "nv-embed.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "nv-embed.sidecar" -}}{{ include "nv-embed.fullname" . }}-sidecar{{- end }}
{{- define "nv-embed.peers" -}}{{ include "nv-embed.fullname" . }}-sidecars{{- end }}
{{- define "nv-embed.worker" -}}{{ include "nv-embed.fullname" . }}-worker{{- end }}

{{/* Both take a list: the root, and sidecar or worker. */}}
{{- define "nv-embed.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "nv-embed.labels" -}}
{{ include "nv-embed.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{/* Of the images: docker/sidecar.Dockerfile. */}}
{{- define "nv-embed.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "nv-embed.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods run; takes sidecar's or worker's values. */}}
{{- define "nv-embed.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A volume from one Secret: a list of its name in the pod and the Secret's. */}}
{{- define "nv-embed.secretVolume" -}}
- name: {{ index . 0 }}
  secret: {secretName: {{ index . 1 | quote }}, defaultMode: 0440}
{{- end }}

{{/* What cannot work is refused before it is installed. */}}
{{- define "nv-embed.check" -}}
{{- $s := .Values.sidecar }}{{ $w := .Values.worker }}{{ $m := .Values.monitoring }}
{{- if $w.enabled }}
{{- if and (not $w.database.url) (not $w.database.urlSecret.name) }}
{{- fail "worker.database.url or worker.database.urlSecret.name is needed: the database whose rows are embedded" }}
{{- end }}
{{- if and (not $w.endpoints) (not $s.enabled) }}
{{- fail "worker.endpoints is needed where sidecar.enabled is false: host:port of sidecars" }}
{{- end }}
{{- if and $w.token.existingSecret (not $w.ca.existingSecret) (not $w.token.withoutTls) }}
{{- fail "worker.token goes over the network: give worker.ca too, or worker.token.withoutTls for a private network" }}
{{- end }}
{{- end }}
{{- if $s.enabled }}
{{- if and $s.tls.clientCaKey (not $s.tls.existingSecret) }}
{{- fail "sidecar.tls.clientCaKey needs sidecar.tls.existingSecret, which has the sidecars' own certificate too" }}
{{- end }}
{{- if and $s.ui.enabled $s.ui.databaseSecret.name (not $s.tokens.existingSecret) (not $s.tls.clientCaKey) }}
{{- fail "sidecar.ui.databaseSecret would show rows to anybody who reaches the port: give sidecar.tokens or sidecar.tls.clientCaKey" }}
{{- end }}
{{- if and $w.enabled (not $w.endpoints) $s.tokens.existingSecret (not $w.token.existingSecret) }}
{{- fail "sidecar.tokens is given, and the worker has no token: give worker.token.existingSecret" }}
{{- end }}
{{- if and $w.enabled (not $w.endpoints) $s.tls.existingSecret (not $w.ca.existingSecret) }}
{{- fail "sidecar.tls is given, and the worker knows no authority: give worker.ca.existingSecret" }}
{{- end }}
{{- if and $w.enabled (not $w.endpoints) $s.tls.clientCaKey (not $w.certificate.existingSecret) }}
{{- fail "sidecar.tls.clientCaKey asks for certificates, and the worker has none: give worker.certificate.existingSecret" }}
{{- end }}
{{- if and $m.serviceMonitor.enabled $s.tokens.existingSecret (not $m.token.existingSecret) }}
{{- fail "sidecar.tokens is given, and Prometheus has no token: give monitoring.token.existingSecret" }}
{{- end }}
{{- if and $m.serviceMonitor.enabled $s.tls.clientCaKey (not $m.certificate.existingSecret) }}
{{- fail "sidecar.tls.clientCaKey asks for certificates, and Prometheus has none: give monitoring.certificate.existingSecret" }}
{{- end }}
{{- end }}
{{- if and $m.serviceMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.monitoring) }}
{{- fail "monitoring.serviceMonitor has Prometheus ask, and no policy lets it in: give networkPolicy.monitoring, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" }}
{{- end }}
{{- end }}
