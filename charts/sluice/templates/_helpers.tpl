{{- define "sluice.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 32 | trimSuffix "-" }}
{{- end }}

{{/*
At most 32 characters: a runner is named after its pod, "<fullname>-inference-<10>-<5>", in 60.
What is cut off leaves a hash, so that two long names stay two.
*/}}
{{- define "sluice.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $chart := include "sluice.name" . -}}
{{- $name = contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart) -}}
{{- end -}}
{{- $name = $name | replace "." "-" -}}
{{- if gt (len $name) 32 -}}
{{- $name = printf "%s-%s" ($name | trunc 25 | trimSuffix "-") (sha256sum $name | trunc 6) -}}
{{- end -}}
{{ $name }}
{{- end }}

{{/* Labels and selectors take (dict "root" $ "component" "router"); without a component, those of all pods. */}}
{{- define "sluice.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sluice.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* The chart's version is on objects only: on pods, a new chart with the same images would roll the GPU pool. */}}
{{- define "sluice.metadata" -}}
name: {{ include "sluice.fullname" .root }}{{ with .component }}-{{ . }}{{ end }}
{{ include "sluice.placement" . }}
{{- end }}

{{- define "sluice.placement" -}}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "sluice.labels" . | nindent 2 }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "sluice.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "sluice.fullname" .) "default") }}
{{- end }}

{{- define "sluice.image" -}}
{{- $image := .values.image -}}
{{- with $image.registry | default .root.Values.image.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}:{{ $image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{- define "sluice.natsUrl" -}}
{{ required "nats.url is empty: name a NATS with JetStream, --set nats.url=nats://<host>:4222" .Values.nats.url }}
{{- end }}

{{/* The port of a URL, or a default: (list "nats://host:4222" 4222). */}}
{{- define "sluice.port" -}}
{{ regexFind ":[0-9]+$" (urlParse (index . 0)).host | trimPrefix ":" | default (index . 1) }}
{{- end }}

{{- define "sluice.secretName" -}}
{{ .Values.secret.existingSecret | default (include "sluice.fullname" .) }}
{{- end }}

{{/*
The data of our Secret: what is in the values, else what the cluster has, else random. Computed once a rendering,
or the Secret and its checksum would each draw their own.
*/}}
{{- define "sluice.secretData" -}}
{{- $secret := .Values.secret -}}
{{- if not (hasKey $secret "data") -}}
{{- $old := (lookup "v1" "Secret" .Release.Namespace (include "sluice.secretName" .)).data | default dict -}}
{{- $data := dict -}}
{{- range $key, $value := dict "stream-secret" $secret.streamSecret "key-pepper" $secret.keyPepper -}}
{{- $kept := index $old $key | default (randAlphaNum 48 | b64enc) -}}
{{- $_ := set $data $key (ternary ($value | b64enc) $kept (ne $value "")) -}}
{{- end -}}
{{- with $secret.turnSecret -}}
{{- $_ := set $data "turn-secret" (b64enc .) -}}
{{- end -}}
{{- $_ := set $secret "data" $data -}}
{{- end -}}
{{ toYaml $secret.data }}
{{- end }}

{{/* Changes with the Secret that the pods read, so that they are rolled; of an existing one, at the next upgrade. */}}
{{- define "sluice.secretChecksum" -}}
{{- if .Values.secret.existingSecret -}}
{{- $secret := lookup "v1" "Secret" .Release.Namespace .Values.secret.existingSecret -}}
{{ list .Values.secret.existingSecret ($secret.data | default dict) | toJson | sha256sum }}
{{- else -}}
{{ include "sluice.secretData" . | sha256sum }}
{{- end -}}
{{- end }}

{{/*
The environment of a component. `own` is what only the chart can know and `secrets` maps a setting to a key of the
Secret; `settings` of the values may set neither, but anything else, also what all components share.
*/}}
{{- define "sluice.env" -}}
{{- $prefix := printf "SLUICE_%s_" (.component | replace "-" "_" | upper) -}}
{{- $own := merge (dict
      "instance" "$(POD_NAME)"
      "metrics_listen" "0.0.0.0:9464"
      "nats_url" (include "sluice.natsUrl" .root)
      "nats_replicas" .root.Values.nats.replicas) .own -}}
{{- $settings := dict
      "log_level" .root.Values.log.level
      "log_format" .root.Values.log.format
      "otlp_endpoint" .root.Values.telemetry.otlpEndpoint
      "shutdown_grace_s" .root.Values.shutdownGraceSeconds -}}
{{- $secrets := .secrets -}}
{{- $key := .key -}}
{{- range $field, $value := .defaults -}}
{{- $_ := set $settings $field $value -}}
{{- end -}}
{{- range $field, $value := .values.settings -}}
{{- if or (hasKey $own $field) (hasKey $secrets $field) -}}
{{- fail (printf "%s.settings.%s is set by the chart itself" $key $field) -}}
{{- end -}}
{{- $_ := set $settings $field $value -}}
{{- end -}}
{{- $drain := float64 (get $settings "drain_s" | default 0) -}}
{{- $least := addf .values.preStopSeconds $drain (mulf 2 (float64 $settings.shutdown_grace_s)) -}}
{{- if le (float64 .values.terminationGracePeriodSeconds) (float64 $least) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds must be above preStopSeconds%s + 2 x shutdown_grace_s = %v" $key (ternary " + drainSeconds" "" (gt $drain 0.0)) $least) -}}
{{- end -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- with .hostAddress }}
- name: HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
{{- end }}
{{- range $map := list $own $settings }}
{{- range $field, $value := $map }}
- name: {{ $prefix }}{{ upper $field }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- $name := include "sluice.secretName" .root }}
{{- range $field, $reference := $secrets }}
- name: {{ $prefix }}{{ upper $field }}
  valueFrom:
    secretKeyRef: {name: {{ $name }}, key: {{ $reference.key }}, optional: {{ $reference.optional }}}
{{- end }}
{{- end }}

{{/*
A Deployment: (dict "root" $ "component" "router" "key" "router" "values" .Values.router "replicas" 2 "strategy" ...
"ports" (dict "grpc" 7001) "own" ... "defaults" ... "secrets" ... "volumes" ... "mounts" ... "resources" ...).
*/}}
{{- define "sluice.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata: {{- include "sluice.metadata" . | nindent 2 }}
spec:
  replicas: {{ .replicas }}
  strategy: {{- toYaml .strategy | nindent 4 }}
  selector:
    matchLabels: {{- include "sluice.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "sluice.labels" . | nindent 8 }}
      {{- if or .secrets .values.podAnnotations }}
      annotations:
        {{- if .secrets }}
        checksum/secret: {{ include "sluice.secretChecksum" .root }}
        {{- end }}
        {{- with .values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "sluice.serviceAccountName" .root }}
      automountServiceAccountToken: false
      {{- /* Service links would add variables such as SLUICE_ROUTER_PORT beside our own. */}}
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with .values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with .values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with concat .values.tolerations (.tolerations | default list) }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "sluice.selectorLabels" . | nindent 14 }}
      {{- if or .fetch .sidecars }}
      initContainers:
        {{- /* Before the pod serves: models that are there already are only looked at. */}}
        {{- range .fetch }}
        - name: fetch-{{ sha256sum . | trunc 10 }}
          image: {{ include "sluice.image" $ | quote }}
          imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
          command: [sluice, models, fetch, {{ . | quote }}, --root, /models]
          resources: {{- toYaml $.values.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: models, mountPath: /models}
        {{- end }}
        {{- /* Sidecars, which end after the containers: what a runner drains from must not go before it. */}}
        {{- with .sidecars }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "sluice.image" . | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          env: {{- include "sluice.env" . | nindent 12 }}
          {{- with .env }}
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            {{- range $name, $port := .ports }}
            - {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
            {{- end }}
            {{- range $name, $of := .udpPorts }}
            - {name: {{ $name }}, containerPort: {{ $of.port }}, protocol: UDP{{ with $of.hostPort }}, hostPort: {{ . }}{{ end }}}
            {{- end }}
            - {name: metrics, containerPort: 9464, protocol: TCP}
          {{- /* Two minutes to start: NATS may be waited for, for 30 s, and a cold disk for Python's modules. */}}
          startupProbe:
            httpGet: {path: /healthz, port: metrics}
            periodSeconds: 2
            failureThreshold: 60
            timeoutSeconds: 2
          {{- /* Above the 10 s after which a stalled event loop reports itself. */}}
          livenessProbe:
            httpGet: {path: /healthz, port: metrics}
            periodSeconds: 10
            failureThreshold: 3
            timeoutSeconds: 3
          readinessProbe:
            httpGet: {path: /readyz, port: metrics}
            periodSeconds: 2
            failureThreshold: 2
            timeoutSeconds: 2
          {{- if .values.preStopSeconds }}
          {{- /* A command, for the API's own `sleep` is off by default in Kubernetes 1.29. */}}
          lifecycle:
            preStop:
              exec: {command: [sleep, {{ .values.preStopSeconds | quote }}]}
          {{- end }}
          resources: {{- toYaml (.resources | default .values.resources) | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- with .mounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
        {{- with .volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end }}

{{/* A headless Service: gRPC clients learn every pod from DNS and balance among them. */}}
{{- define "sluice.headless" -}}
apiVersion: v1
kind: Service
metadata: {{- include "sluice.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  selector: {{- include "sluice.selectorLabels" . | nindent 4 }}
  ports:
    - {name: grpc, port: {{ .port }}, targetPort: grpc, protocol: TCP, appProtocol: grpc}
{{- end }}

{{/* Lets a node be drained one pod at a time, and never be blocked by a pod that is broken anyway. */}}
{{- define "sluice.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "sluice.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "sluice.selectorLabels" . | nindent 6 }}
{{- end }}

{{- define "sluice.rolling" -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
{{- end }}

{{/* For pods with a port of their node: the new one has no place beside the old one. */}}
{{- define "sluice.oneByOne" -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 0, maxUnavailable: 1}
{{- end }}

{{/* The address that WebRTC clients are told, with the port where that is another one than the pod's. */}}
{{- define "sluice.webrtcAddress" -}}
{{- $webrtc := .Values.ingest.webrtc -}}
{{- $host := $webrtc.address | default (ternary "$(HOST_IP)" "$(POD_IP)" (gt (int $webrtc.hostPort) 0)) -}}
{{- $host -}}
{{- if and $webrtc.hostPort (ne (int $webrtc.hostPort) 8189) -}}:{{ $webrtc.hostPort }}{{- end -}}
{{- end }}
