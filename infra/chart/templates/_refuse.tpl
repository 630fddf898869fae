{{/* What cannot be meant, all of it at once; what one key alone cannot be stands in values.schema.json. */}}
{{- define "qwen3.refuse" -}}
{{- $serving := .Values.serving }}
{{- $cluster := .Values.cluster }}
{{- $said := list }}

{{- with .Values.image }}
  {{- if not (or (regexMatch "@sha256:[0-9a-f]{64}$" .) (regexMatch ":[0-9a-f]{12,64}$" .)) }}
    {{- $said = append $said (printf "image %q is not pinned: its tag may name something else tomorrow, on one node and not on the other; write NAME@sha256:DIGEST, or, for an image that was built here, NAME:HASH (12 hex digits or more)" .) }}
  {{- end }}
{{- else }}
  {{- $said = append $said "image is missing: --set image=NAME@sha256:DIGEST" }}
{{- end }}

{{- if ne .Values.deployment_type "kubernetes" }}
  {{- $said = append $said (printf "deployment_type is %q: these are the objects of \"kubernetes\"; servers are set up by playbooks/, a laptop by the stack local" .Values.deployment_type) }}
{{- end }}
{{- if has $serving.host (list "127.0.0.1" "localhost" "::1") }}
  {{- $said = append $said (printf "serving.host is %q: nobody outside the container could reach it, not even its probes; set 0.0.0.0" $serving.host) }}
{{- end }}
{{- $least := addf $serving.request_timeout_s 5 }}
{{- if lt (float64 $serving.drain_s) $least }}
  {{- $said = append $said (printf "serving.drain_s (%v) must be at least request_timeout_s + 5 (%v): a request accepted just before SIGTERM may take all of request_timeout_s, and draining must outlast it or its stream is cut" $serving.drain_s $least) }}
{{- end }}
{{- if not (kindIs "invalid" $serving.log_dir) }}
  {{- $said = append $said (printf "serving.log_dir is %q: the container's root is read-only and its logs are collected from stdout; set null" $serving.log_dir) }}
{{- end }}
{{- range tuple "otlp_endpoint" "engine_url" }}
  {{- with get $serving . }}
    {{- if not (regexMatch `^https?://([^/?#@]*@)?(\[[^]/?#]+\]|[^][:/?#@]+)(:[0-9]{1,5})?([/?#]|$)` .) }}
      {{- $said = append $said (printf "serving: %q is no address: write http://HOST:PORT" .) }}
    {{- end }}
  {{- end }}
{{- end }}

{{- $settings := .Values.optimization_settings }}
{{- if and (not $settings.enable_kv_cache) (ne .Values.engine "transformers") }}
  {{- $said = append $said (printf "optimization_settings.enable_kv_cache is false, but engine %q always keeps a KV cache: set it to true, or use engine \"transformers\"" .Values.engine) }}
{{- end }}
{{- if ne $settings.enable_quantization (lt (int64 $settings.quantization_bits) 16) }}
  {{- $said = append $said (printf "optimization_settings.enable_quantization is %v but quantization_bits is %v: 16 bits means no quantization, 4 or 8 bits mean quantization; change one of the two" $settings.enable_quantization $settings.quantization_bits) }}
{{- end }}
{{- $min := int64 .Values.replicas.min }}
{{- $max := int64 .Values.replicas.max }}
{{- if gt $min $max }}
  {{- $said = append $said (printf "replicas.min (%d) is above replicas.max (%d): raise max or lower min" $min $max) }}
{{- end }}
{{- $before := 0 }}
{{- $ascending := true }}
{{- range .Values.rollout.steps }}
  {{- if le (int . ) $before }}{{ $ascending = false }}{{ end }}
  {{- $before = int . }}
{{- end }}
{{- if or (not $ascending) (ne $before 100) }}
  {{- $said = append $said (printf "rollout.steps %v must ascend to 100: a rollout only ever widens, and ends with everyone" .Values.rollout.steps) }}
{{- end }}

{{- if ne (eq $cluster.weights "download") (not (kindIs "invalid" .Values.model_revision)) }}
  {{- $said = append $said (printf "cluster.weights is %q and model_revision %v: download is for a hub id with its commit, and only for that" $cluster.weights (.Values.model_revision | default "null")) }}
{{- end }}
{{- if and (not (kindIs "invalid" $cluster.weights_claim_gb)) (ne $cluster.weights "claim") }}
  {{- $said = append $said (printf "cluster.weights_claim_gb is %v, but cluster.weights is %q: nothing would mount the claim; set weights to \"claim\", or weights_claim_gb to null" $cluster.weights_claim_gb $cluster.weights) }}
{{- end }}
{{- range $name, $_ := $cluster.env }}
  {{- if not (hasPrefix "MODEL_SERVER_" $name) }}
    {{- $said = append $said (printf "cluster.env.%s: only MODEL_SERVER_SECTION__KEY is read, such as MODEL_SERVER_SERVING__LOG_LEVEL" $name) }}
  {{- end }}
{{- end }}
{{- with $cluster.capacity }}
  {{- $most := add $max 1 }}
  {{- range list
      (dict "what" "CPU" "unit" "cores" "each" (divf $.Values.resource_limits.cpu_cores 2) "there" .cpu_cores)
      (dict "what" "memory" "unit" "GiB" "each" (divf $.Values.resource_limits.memory_gb 2) "there" .memory_gb) }}
    {{- $asked := mulf $most .each }}
    {{- if gt $asked (float64 .there) }}
      {{- $fits := sub (divf .there .each | floor | int64) 1 | max 0 }}
      {{- $said = append $said (printf "replicas.max = %d, and one more during a rollout, request %d x %v = %v %s of %s, but cluster.capacity is %v: pods would stay pending. replicas.max = %d fits" $max $most .each $asked .unit .what .there $fits) }}
    {{- end }}
  {{- end }}
{{- end }}

{{- $keys := $serving.api_keys_file }}
{{- if kindIs "invalid" $keys }}
  {{- $said = append $said (printf "serving.api_keys_file is null, and serving.host %q is within others' reach: the server refuses to start without keys; set /run/secrets/api_keys" $serving.host) }}
{{- else }}
  {{- if has (dir $keys) (list "/" "/etc" "/tmp" "/opt") }}
    {{- $said = append $said (printf "serving.api_keys_file is %q: its folder becomes the mount of the Secret and would hide what the image has there; choose a folder of its own, such as /run/secrets/api_keys" $keys) }}
  {{- end }}
  {{- if and .Values.api_keys .Values.existing_secret }}
    {{- $said = append $said "api_keys and existing_secret are both set: keep one" }}
  {{- else if not (or .Values.api_keys .Values.existing_secret) }}
    {{- $said = append $said (printf "serving.api_keys_file is %q, but there are no keys: --set-file api_keys=FILE (one a line), or existing_secret=NAME of a Secret whose key is api_keys" $keys) }}
  {{- end }}
{{- end }}

{{- if $cluster.prometheus_operator }}
  {{- $rows := (.Files.Get "files/rules.json" | fromJson).thresholds }}
  {{- range $name, $threshold := .Values.alerts }}
    {{- $row := get $rows $name }}
    {{- if not $row }}
      {{- $said = append $said (printf "alerts.%s: no such alert; there are: %s" $name (keys $rows | sortAlpha | join ", ")) }}
    {{- else if lt (float64 $threshold) 0.0 }}
      {{- $said = append $said (printf "alerts.%s: %v is below 0" $name $threshold) }}
    {{- else if and (eq $row.unit "percent") (or (le (float64 $threshold) 0.0) (gt (float64 $threshold) 100.0)) }}
      {{- $said = append $said (printf "alerts.%s: %v percent must be above 0 and at most 100" $name $threshold) }}
    {{- end }}
  {{- end }}
{{- end }}

{{- with $said }}{{ fail (printf "these values cannot be used:\n  %s" (join "\n  " .)) }}{{ end }}
{{- end }}
