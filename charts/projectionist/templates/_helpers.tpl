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

{{/*
Whether custom.metrics.k8s.io is ours. With "auto" only if Helm sees the cluster, where there is always a v1, and no version of the
group leads elsewhere: one version beside another adapter's would take the autoscalers of others away from it.
*/}}
{{- define "projectionist.customMetrics" -}}
{{- if and (eq (toString .Values.customMetrics.enabled) "auto") .Values.metricsApi.delegate.custom.service -}}
true
{{- else if eq (toString .Values.customMetrics.enabled) "auto" -}}
{{- $free := not (empty (lookup "apiregistration.k8s.io/v1" "APIService" "" "v1.")) -}}
{{- range $version := list "v1beta1" "v1beta2" -}}
{{- $held := lookup "apiregistration.k8s.io/v1" "APIService" "" (printf "%s.custom.metrics.k8s.io" $version) -}}
{{- if $held -}}
{{- $service := (dig "spec" "service" nil $held) | default dict -}}
{{- if or (ne (get $service "name") (include "projectionist.fullname" $)) (ne (get $service "namespace") $.Release.Namespace) -}}
{{- $free = false -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $free -}}true{{- end -}}
{{- else if .Values.customMetrics.enabled -}}
true
{{- end -}}
{{- end -}}

{{/* The APIServices that lead to the operator. */}}
{{- define "projectionist.apiServices" -}}
{{- $names := list -}}
{{- if .Values.externalMetrics.enabled -}}
{{- $names = append $names "v1beta1.external.metrics.k8s.io" -}}
{{- end -}}
{{- if include "projectionist.customMetrics" . -}}
{{- $names = concat $names (list "v1beta1.custom.metrics.k8s.io" "v1beta2.custom.metrics.k8s.io") -}}
{{- end -}}
{{- toYaml $names -}}
{{- end -}}

{{/*
Those of them that Helm makes. One that another adapter made is not Helm's to make: Helm would refuse, and the operator takes it over.
*/}}
{{- define "projectionist.apiServicesOfHelm" -}}
{{- $names := list -}}
{{- range $name := include "projectionist.apiServices" . | fromYamlArray -}}
{{- $ours := true -}}
{{- if $.Values.apiServices.takeOver -}}
{{- $held := lookup "apiregistration.k8s.io/v1" "APIService" "" $name -}}
{{- $notes := (dig "metadata" "annotations" nil $held) | default dict -}}
{{- if and $held (or (ne (get $notes "meta.helm.sh/release-name") $.Release.Name) (ne (get $notes "meta.helm.sh/release-namespace") $.Release.Namespace)) -}}
{{- $ours = false -}}
{{- end -}}
{{- end -}}
{{- if $ours -}}
{{- $names = append $names $name -}}
{{- end -}}
{{- end -}}
{{- toYaml $names -}}
{{- end -}}

{{/* The adapters that are asked for the rest, by group, and whether what is said of them makes sense. */}}
{{- define "projectionist.delegates" -}}
{{- $all := dict -}}
{{- range $group, $delegate := .Values.metricsApi.delegate -}}
{{- if $delegate.service -}}
{{- $value := printf "metricsApi.delegate.%s" $group -}}
{{- if not $delegate.namespace -}}{{- fail (printf "%s.namespace is missing: where is the service %s?" $value $delegate.service) -}}{{- end -}}
{{- $sources := 0 -}}
{{- range $source := list $delegate.caBundle $delegate.caConfigMap $delegate.caSecret -}}
{{- if $source -}}{{- $sources = add1 $sources -}}{{- end -}}
{{- end -}}
{{- if ne (int $sources) 1 -}}{{- fail (printf "%s needs one of caBundle, caConfigMap and caSecret: its certificate is always verified" $value) -}}{{- end -}}
{{- $all = set $all $group $delegate -}}
{{- end -}}
{{- end -}}
{{- if and $all.external (not .Values.externalMetrics.enabled) -}}{{- fail "metricsApi.delegate.external needs externalMetrics.enabled: only who serves the group is asked for it" -}}{{- end -}}
{{- if and $all.custom (not (include "projectionist.customMetrics" .)) -}}{{- fail "metricsApi.delegate.custom needs customMetrics.enabled: only who serves the group is asked for it" -}}{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* The ServiceAccount under which they are asked: its token allows no more than reading their metrics. */}}
{{- define "projectionist.delegateAccount" -}}
{{ include "projectionist.fullname" . }}-delegate
{{- end -}}

{{/* The Secret with the serving certificate: another name for each way to renew it, so that two never write one. */}}
{{- define "projectionist.certificateSecret" -}}
{{ include "projectionist.fullname" . }}-serving-{{ if .Values.certManager.enabled }}tls{{ else }}cert{{ end }}
{{- end -}}

{{/* The metrics of a Projection: names, since RBAC knows an external metric as a resource, and one of an object as a subresource. */}}
{{- define "projectionist.metricNames" -}}
- pending_events
- queue_length
- held_back_events
- staleness_seconds
- required_workers
- parked_events
- arrival_rate
- drain_seconds
- value
- read_store_connections
- read_store_connections_ratio
- read_store_latency_seconds
{{- end -}}

{{/* The workers' defaults, as the operator reads them; what is empty is left out, so that the operator's own defaults count. */}}
{{- define "projectionist.workerDefaults" -}}
{{- $pod := dict "podSecurityContext" (.Values.workers.podSecurityContext | default dict) "securityContext" (.Values.workers.securityContext | default dict) -}}
{{- range $field := list "labels" "annotations" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "imagePullSecrets" "priorityClassName" "runtimeClassName" -}}
{{- with get $.Values.workers $field -}}
{{- $_ := set $pod $field . -}}
{{- end -}}
{{- end -}}
{{- $defaults := dict "pod" $pod -}}
{{- with .Values.workers.resources -}}
{{- $_ := set $defaults "resources" . -}}
{{- end -}}
{{- toJson $defaults -}}
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
# Why workers do not run: the pods of a workload are listed while some of them are not ready. They are watched where their own pages say what waits.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
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
