{{/*
What model_server/deployment.py and infra/manifests.py derive, once more: tests/infra/test_chart.py holds both
together. Each definition that is more than a word gives JSON, since a template can only return text.

Numbers: Helm reads them as floats or, after --set, as integers; sprig's addf and mulf calculate in decimals.
*/}}

{{- define "qwen3.name" -}} qwen3-inference {{- end }}

{{- define "qwen3.labels" -}}
app: {{ include "qwen3.name" . }}
app.kubernetes.io/name: {{ include "qwen3.name" . }}
app.kubernetes.io/part-of: qwen3-stack
{{- end }}

{{- define "qwen3.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "qwen3.labels" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* The environment as the server reads it: what is null is left out, since null is what it is then anyway. */}}
{{- define "qwen3.environment" -}}
{{- $found := omit .Values "cluster" "api_keys" "existing_secret" "global" | deepCopy }}
{{- range $key, $value := $found }}
  {{- if kindIs "invalid" $value }}
    {{- $_ := unset $found $key }}
  {{- else if kindIs "map" $value }}
    {{- range $inner, $each := $value }}
      {{- if kindIs "invalid" $each }}{{ $_ := unset $value $inner }}{{ end }}
    {{- end }}
  {{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- /* Of everything that a running server cannot take over. */}}
{{- define "qwen3.checksum" -}}
{{- $cold := include "qwen3.environment" . | fromJson }}
{{- range .Files.Get "files/hot.json" | fromJsonArray }}
  {{- $path := splitList "." . }}
  {{- if eq (len $path) 1 }}{{ $_ := unset $cold . }}
  {{- else }}{{ $_ := unset (get $cold (first $path)) (last $path) }}
  {{- end }}
{{- end }}
{{- toJson $cold | sha256sum | trunc 12 }}
{{- end }}

{{- define "qwen3.timings" -}}
{{- $pre_stop := 5 }}
{{- $grace := add (addf $pre_stop .Values.serving.drain_s | ceil | int64) 10 }}
{{- $start := mulf 4 (addf 15 (mulf 15 .Values.resource_limits.memory_gb)) | ceil | int64 }}
{{- dict "pre_stop" $pre_stop "grace" $grace "hung_grace" (add $pre_stop 10) "start" $start "progress" (add $start $grace) | toJson }}
{{- end }}

{{- /* Cores -> quantity. Half of a thousandth goes to the even neighbour, as Python rounds. */}}
{{- define "qwen3.cpu" -}}
{{- $exact := mulf . 1000 }}
{{- $milli := floor $exact | int64 }}
{{- $over := subf $exact (floor $exact) }}
{{- if or (gt $over 0.5) (and (eq $over 0.5) (eq (mod $milli 2) 1)) }}{{ $milli = add $milli 1 }}{{ end }}
{{- if eq (mod $milli 1000) 0 }}{{ div $milli 1000 }}{{ else }}{{ $milli }}m{{ end }}
{{- end }}

{{- /* MiB -> quantity. */}}
{{- define "qwen3.memory" -}}
{{- if eq (mod . 1024) 0 }}{{ div . 1024 }}Gi{{ else }}{{ . }}Mi{{ end }}
{{- end }}

{{- /* GiB -> quantity, in whole MiB and never 0, which would be no limit. */}}
{{- define "qwen3.disk" -}}
{{- include "qwen3.memory" (mulf . 1024 | ceil | int64) }}
{{- end }}

{{- /* Requests are half of the limits. */}}
{{- define "qwen3.resources" -}}
{{- $limits := .Values.resource_limits }}
{{- $mebi := mulf $limits.memory_gb 1024 | floor | int64 }}
requests:
  cpu: {{ include "qwen3.cpu" (divf $limits.cpu_cores 2) | quote }}
  memory: {{ include "qwen3.memory" (div $mebi 2) }}
  {{- with int64 $limits.gpu_count }}
  nvidia.com/gpu: {{ . | quote }}
  {{- end }}
limits:
  cpu: {{ include "qwen3.cpu" $limits.cpu_cores | quote }}
  memory: {{ include "qwen3.memory" $mebi }}
  {{- with int64 $limits.gpu_count }}
  nvidia.com/gpu: {{ . | quote }}
  {{- end }}
{{- end }}

{{- define "qwen3.metricsPort" -}}
{{- if kindIs "invalid" .Values.serving.metrics_port }}{{ int64 .Values.serving.port }}
{{- else }}{{ int64 .Values.serving.metrics_port }}
{{- end }}
{{- end }}

{{- define "qwen3.keeper" -}} qwen3-deletion-cost {{- end }}

{{- /* Whether pods get a deletion cost: where their number changes and /metrics asks for no key. */}}
{{- define "qwen3.keepsCosts" -}}
{{- $own_port := not (kindIs "invalid" .Values.serving.metrics_port) }}
{{- if and .Values.cluster.deletion_cost $own_port (lt (int64 .Values.replicas.min) (int64 .Values.replicas.max)) }}yes{{ end }}
{{- end }}

{{- define "qwen3.secret" -}} {{ .Values.existing_secret | default (printf "%s-api-keys" (include "qwen3.name" .)) }} {{- end }}

{{- /* A pod that keeps the restricted security standard. */}}
{{- define "qwen3.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "qwen3.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
