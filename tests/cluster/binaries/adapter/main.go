// A second adapter of the metrics API, made as KEDA and prometheus-adapter are: of the library that both stand on. The values are those of
// the library's own sample: `my-external-metric` is a constant, and `load` of Services is what is posted to port 8080.
package main

import (
	"context"
	"net/http"
	"os"
	"time"

	"github.com/emicklei/go-restful/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/klog/v2"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/cmd"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
	sample "sigs.k8s.io/custom-metrics-apiserver/test-adapter/provider"
)

// named lists the sample's metrics, of which the sample itself says only that there are some.
type named struct{ provider.MetricsProvider }

func (named) ListAllExternalMetrics() []provider.ExternalMetricInfo {
	return []provider.ExternalMetricInfo{{Metric: "my-external-metric"}, {Metric: "other-external-metric"}}
}

func (named) ListAllMetrics() []provider.CustomMetricInfo {
	services := schema.GroupResource{Resource: "services"}
	return []provider.CustomMetricInfo{{GroupResource: services, Namespaced: true, Metric: "load"}}
}

func run() error {
	adapter := &cmd.AdapterBase{Name: "test-adapter"}
	if err := adapter.Flags().Parse(os.Args); err != nil {
		return err
	}
	client, err := adapter.DynamicClient()
	if err != nil {
		return err
	}
	mapper, err := adapter.RESTMapper()
	if err != nil {
		return err
	}
	values, writes := sample.NewFakeProvider(client, mapper)
	adapter.WithCustomMetrics(named{values})
	adapter.WithExternalMetrics(named{values})
	posts := restful.NewContainer().Add(writes)
	go func() {
		server := &http.Server{Addr: ":8080", Handler: posts, ReadHeaderTimeout: 3 * time.Second}
		klog.Fatal(server.ListenAndServe())
	}()
	return adapter.Run(context.Background())
}

func main() {
	if err := run(); err != nil {
		klog.Fatal(err)
	}
}
