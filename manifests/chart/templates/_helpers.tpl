{{- define "akri-krustlet.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "akri-krustlet.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "akri-krustlet.labels" -}}
{{ include "akri-krustlet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "akri-krustlet.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "akri-krustlet.name" .) }}
{{- end }}

{{- define "akri-krustlet.tag" -}}
{{ .Values.images.tag | default (printf "v%s" .Chart.AppVersion) }}
{{- end }}

{{- /* The pod of a handler, without apiVersion and kind: (dict "root" $ "name" NAME "handler" HANDLER). */ -}}
{{- define "akri-krustlet.handlerMetadata" -}}
{{- with .handler.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "akri-krustlet.handlerSpec" -}}
{{- $root := .root -}}
{{- range $mount, $_ := .handler.hostPaths }}
{{- if hasKey ($.handler.writableHostPaths | default dict) $mount }}
{{- fail (printf "handlers.%s: %s is in hostPaths and in writableHostPaths" $.name $mount) }}
{{- end }}
{{- end }}
{{- if .handler.hostNetwork }}
hostNetwork: true
{{- end }}
automountServiceAccountToken: false
containers:
- name: {{ .name | quote }}
  image: {{ .handler.image | default (printf "%s/%s:%s" $root.Values.images.registry .name (include "akri-krustlet.tag" $root)) | quote }}
  imagePullPolicy: {{ $root.Values.images.pullPolicy }}
  {{- with .handler.env }}
  env:
  {{- range $name, $value := . }}
  - name: {{ $name | quote }}
    value: {{ $value | quote }}
  {{- end }}
  {{- end }}
  resources:
    {{- toYaml (.handler.resources | default $root.Values.handlerResources) | nindent 4 }}
  {{- if or .handler.hostPaths .handler.writableHostPaths }}
  volumeMounts:
  {{- range $mount, $path := .handler.hostPaths }}
  - name: {{ include "akri-krustlet.volume" $mount }}
    mountPath: {{ $mount | quote }}
    readOnly: true
  {{- end }}
  {{- range $mount, $path := .handler.writableHostPaths }}
  - name: {{ include "akri-krustlet.volume" $mount }}
    mountPath: {{ $mount | quote }}
  {{- end }}
  {{- end }}
{{- if or .handler.hostPaths .handler.writableHostPaths }}
volumes:
{{- range $mount, $path := .handler.hostPaths }}
- name: {{ include "akri-krustlet.volume" $mount }}
  hostPath:
    path: {{ $path | quote }}
{{- end }}
{{- range $mount, $path := .handler.writableHostPaths }}
- name: {{ include "akri-krustlet.volume" $mount }}
  hostPath:
    path: {{ $path | quote }}
    type: DirectoryOrCreate
{{- end }}
{{- end }}
{{- end }}

{{- /* The host's directories that handlers mount, which their pod has to have, at the same paths: path: whether one writes. */ -}}
{{- define "akri-krustlet.hostPaths" -}}
{{- $paths := dict }}
{{- range .Values.handlers }}
{{- if .enabled }}
{{- range .hostPaths }}{{ if not (hasKey $paths .) }}{{ $_ := set $paths . false }}{{ end }}{{ end }}
{{- range .writableHostPaths }}{{ $_ := set $paths . true }}{{ end }}
{{- end }}
{{- end }}
{{- toYaml $paths }}
{{- end }}

{{- /* The name of the volume of a path, which may have any letters. */ -}}
{{- define "akri-krustlet.volume" -}}
{{ printf "path-%s" (. | sha256sum | trunc 16) }}
{{- end }}
