{{- define "projectionist.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 44 characters, so that every suffix (such as -extension-config) fits into a name. */}}
{{- define "projectionist.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "projectionist.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 44 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Cluster-wide objects carry the namespace, so that their names tell whose they are; the usual one stays short. */}}
{{- define "projectionist.clusterName" -}}
{{- $fullname := include "projectionist.fullname" . -}}
{{- if eq $fullname .Release.Namespace -}}{{ $fullname }}{{- else -}}{{ printf "%s-%s" .Release.Namespace $fullname }}{{- end -}}
{{- end -}}

{{- define "projectionist.selectorLabels" -}}
app.kubernetes.io/name: {{ include "projectionist.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "projectionist.operatorLabels" -}}
{{ include "projectionist.selectorLabels" . }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "projectionist.labels" -}}
{{ include "projectionist.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: projectionist
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "projectionist.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "projectionist.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "projectionist.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The metrics that autoscalers may read: names, since RBAC matches a metric's name as a resource. */}}
{{- define "projectionist.metricNames" -}}
- projection_pending_events
- projection_queue_length
- projection_staleness_seconds
- projection_required_workers
- projection_arrival_rate
- projection_drain_seconds
{{- end -}}

{{/* The security of every pod of ours, as Pod Security "restricted" asks and more. */}}
{{- define "projectionist.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "projectionist.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end -}}

{{/* What the operator does in the namespaces that it watches. */}}
{{- define "projectionist.watchedRules" -}}
- apiGroups: [projectionist.dev]
  resources: [projections]
  verbs: [get, list, watch]
- apiGroups: [projectionist.dev]
  resources: [projections/status]
  verbs: [get, patch, update]
# Owner references that block deletion need this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [projectionist.dev]
  resources: [projections/finalizers]
  verbs: [update]
# One Secret by its name, when a Projection names it: never a list.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# Workloads that projector.existing names: read, and their scale written.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments/scale, statefulsets/scale]
  verbs: [get, patch, update]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
