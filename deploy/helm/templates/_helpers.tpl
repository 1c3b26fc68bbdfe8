{{- /* The labels of everything; `labels` takes (list root component). */ -}}
{{- define "guard.labels" -}}
{{- $root := first . -}}
{{ include "guard.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{- define "guard.selector" -}}
app.kubernetes.io/name: {{ (first .).Chart.Name }}
app.kubernetes.io/instance: {{ (first .).Release.Name | quote }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- /* An image by digest where there is one. Takes (list values tag). */ -}}
{{- define "guard.image" -}}
{{- $image := first . -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ last . }}{{ end }}
{{- end }}

{{- define "guard.tlsSecret" -}}
{{ .Values.tls.secretName | default (printf "%s-tls" .Release.Name) }}
{{- end }}

{{- define "guard.claim" -}}
{{ .Values.models.claim.name | default (printf "%s-models" .Release.Name) }}
{{- end }}

{{- define "guard.loadsFromClaim" -}}
{{- if or .Values.models.claim.name .Values.models.claim.create }}yes{{ end }}
{{- end }}

{{- /* What the schema cannot say. */ -}}
{{- define "guard.check" -}}
{{- $values := .Values -}}
{{- $claim := include "guard.loadsFromClaim" . -}}
{{- /* A Service's name begins with a letter and has no dot; a StatefulSet's, with which its pods are labelled, has 52 characters at most. */ -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]{0,42}[a-z0-9])?$" .Release.Name) -}}
{{- fail "The release's name must be 1 to 44 of a-z, 0-9 and -, and begin with a letter: it is a part of the names of services and pods." -}}
{{- end -}}
{{- range $factor := untilStep 2 2237 1 -}}
{{- if and (lt $factor (int $values.gateway.tableSize)) (eq 0 (mod (int $values.gateway.tableSize) $factor)) -}}
{{- fail (printf "gateway.tableSize is %d, which is no prime number: Envoy would refuse all of its configuration." (int $values.gateway.tableSize)) -}}
{{- end -}}
{{- end -}}
{{- if and $values.models.image.reference $claim -}}
{{- fail "The model repository is in an image or in a claim: give models.image.reference or models.claim, not both." -}}
{{- else if not (or $values.models.image.reference $claim) -}}
{{- fail "Say where the model repository is: models.image.reference, models.claim.name, or models.claim.create=true." -}}
{{- end -}}
{{- if and $values.models.loader (not $claim) -}}
{{- fail "models.loader copies into a claim, and the model repository is in an image." -}}
{{- end -}}
{{- if gt (int $values.replicas.count) (int $values.replicas.max) -}}
{{- fail (printf "replicas.count is %d, above replicas.max, which is %d." (int $values.replicas.count) (int $values.replicas.max)) -}}
{{- end -}}
{{- if and (ne $values.autoscaling.kind "none") (lt (int $values.replicas.count) 1) -}}
{{- fail "Autoscaling keeps replicas.count at least, which must then be 1 or more." -}}
{{- end -}}
{{- if and (eq $values.entry "gateway") (not $values.gateway.create) (not $values.gateway.name) -}}
{{- fail "gateway.create is false: name the Gateway in gateway.name." -}}
{{- end -}}
{{- if and $values.tls.issuer.name (not $values.tls.dnsNames) -}}
{{- fail "tls.issuer.name asks for a certificate: say for which names, in tls.dnsNames." -}}
{{- end -}}
{{- end }}

{{- /* A parameter's value as Triton reads it: YAML's large numbers are floating point to Helm, which writes 4.29e+09. */ -}}
{{- define "guard.plain" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) (lt . 9.0e18) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- /* Variables of the environment for the models' parameters. */ -}}
{{- define "guard.parameters" -}}
{{- $device := empty .Values.replicas.gpus | ternary (dict) (dict "device" "cuda") -}}
{{- $models := dict
    "GEN" (merge (dict) .Values.parameters.gen $device)
    "STREAM" (merge (dict) .Values.parameters.stream $device)
    "GEN_TOKENIZER" .Values.parameters.genTokenizer
    "STREAM_TOKENIZER" .Values.parameters.streamTokenizer -}}
{{- range $model, $parameters := $models }}
{{- range $name, $value := $parameters }}
- name: QWEN3GUARD_{{ $model }}_{{ upper $name }}
  value: {{ include "guard.plain" $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "guard.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "guard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Takes (list root component). */ -}}
{{- define "guard.spread" -}}
{{- $arguments := . -}}
{{- $spread := (first .).Values.spread -}}
{{- range $key, $rule := dict "topology.kubernetes.io/zone" $spread.zones "kubernetes.io/hostname" $spread.nodes }}
{{- if $rule }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: {{ $rule }}
  labelSelector:
    matchLabels:
      {{- include "guard.selector" $arguments | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The calls that clients make. The others are for those who administrate a server. */ -}}
{{- define "guard.methods" -}}
ServerLive ServerReady ServerMetadata ModelReady ModelMetadata ModelInfer
{{- end }}
