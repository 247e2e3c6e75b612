//! The command lines and configuration files of the cluster's programs. Writes files; starts nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::images::PAUSE_IMAGE;
use crate::instance::Instance;
use crate::network::{BRIDGE, DNS_ADDRESS, NODE_ADDRESS, POD_SUBNET, SERVICE_SUBNET};
use crate::options::ClusterOptions;
use crate::pki::Pki;

/// The name of the only node.
pub(crate) const NODE_NAME: &str = "node";

/// One long-running program of the cluster.
#[derive(Debug)]
pub(crate) struct Component {
    /// What its log and pid files are called.
    pub(crate) name: &'static str,
    /// The program's path.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
}

/// Writes the configuration of one instance and knows how each program is called.
#[derive(Debug)]
pub(crate) struct Components<'a> {
    instance: &'a Instance,
    binaries: &'a Binaries,
    options: &'a ClusterOptions,
    pki: Pki,
    etc: PathBuf,
}

impl<'a> Components<'a> {
    /// Creates keys, directories and the administrator's kubeconfig.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn prepare(instance: &'a Instance, binaries: &'a Binaries, options: &'a ClusterOptions) -> Result<Self> {
        let pki = Pki::create(&instance.state().join("pki"))?;
        let etc = instance.state().join("etc");
        fs::create_dir_all(etc.join("cni")).with_context(|| format!("creating {}", etc.display()))?;
        write(&instance.kubeconfig(), &pki.kubeconfig("admin")?)?;
        for who in ["controller-manager", "scheduler", "kubelet", "kube-proxy", "coredns"] {
            write(&etc.join(format!("{who}.kubeconfig")), &pki.kubeconfig(who)?)?;
        }
        Ok(Self { instance, binaries, options, pki, etc })
    }

    /// The store. It need not survive a power cut, so it waits for no disk.
    #[must_use]
    pub(crate) fn etcd(&self) -> Component {
        self.component(
            "etcd",
            [
                format!("--data-dir={}", self.state("etcd")),
                "--unsafe-no-fsync=true".to_owned(),
                "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
                "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
                "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        )
    }

    /// The API server, with the aggregator as a real cluster has it: a second authority for the front proxy, and requests that go
    /// straight to the endpoints of an APIService.
    #[must_use]
    pub(crate) fn api_server(&self) -> Component {
        let pki = |file: &str| self.pki.path(file);
        let mut component = self.component(
            "kube-apiserver",
            [
                format!("--advertise-address={NODE_ADDRESS}"),
                "--secure-port=6443".to_owned(),
                "--etcd-servers=http://127.0.0.1:2379".to_owned(),
                format!("--tls-cert-file={}", pki("apiserver.crt")),
                format!("--tls-private-key-file={}", pki("apiserver.key")),
                format!("--client-ca-file={}", pki("ca.crt")),
                format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
                "--requestheader-allowed-names=front-proxy-client".to_owned(),
                "--requestheader-username-headers=X-Remote-User".to_owned(),
                "--requestheader-uid-headers=X-Remote-Uid".to_owned(),
                "--requestheader-group-headers=X-Remote-Group".to_owned(),
                "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
                format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
                format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
                "--enable-aggregator-routing=true".to_owned(),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
                format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
                format!("--service-account-key-file={}", pki("service-accounts.pub")),
                format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
                format!("--service-cluster-ip-range={SERVICE_SUBNET}"),
                format!("--cert-dir={}", self.state("pki")),
                "--allow-privileged=true".to_owned(),
            ],
        );
        component.arguments.extend(self.options.api_server_flags.iter().cloned());
        component
    }

    /// The controllers, each with a service account of its own as in a real cluster.
    #[must_use]
    pub(crate) fn controller_manager(&self) -> Component {
        let mut component = self.component(
            "kube-controller-manager",
            [
                format!("--kubeconfig={}", self.file("controller-manager.kubeconfig")),
                "--leader-elect=false".to_owned(),
                "--use-service-account-credentials=true".to_owned(),
                format!("--service-account-private-key-file={}", self.pki.path("service-accounts.key")),
                format!("--root-ca-file={}", self.pki.path("ca.crt")),
                format!("--cluster-signing-cert-file={}", self.pki.path("ca.crt")),
                format!("--cluster-signing-key-file={}", self.pki.path("ca.key")),
                format!("--flex-volume-plugin-dir={}", self.state("volume-plugins")),
                format!("--horizontal-pod-autoscaler-sync-period={}", self.options.hpa_sync_period),
                "--bind-address=127.0.0.1".to_owned(),
            ],
        );
        component.arguments.extend(self.options.controller_manager_flags.iter().cloned());
        component
    }

    /// The scheduler.
    #[must_use]
    pub(crate) fn scheduler(&self) -> Component {
        self.component(
            "kube-scheduler",
            [
                format!("--kubeconfig={}", self.file("scheduler.kubeconfig")),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
            ],
        )
    }

    /// The container runtime with a configuration, state and socket of its own.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub(crate) fn containerd(&self) -> Result<Component> {
        let run = self.instance.run();
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  netns_mounts_under_state_dir = true
  # Without CAP_SYS_RESOURCE, as inside many a container, no process may ask for a lower score than it has.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{etc}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "runc"
      Root = "{run}/runc"
"#,
            root = self.state("containerd"),
            run = run.display(),
            socket = self.instance.containerd_socket().display(),
            etc = self.etc.display(),
        );
        write(&self.etc.join("containerd.toml"), &config)?;
        let network = json!({
            "cniVersion": "0.4.0", "name": self.instance.unique_name(),
            "plugins": [
                {"type": "bridge", "bridge": BRIDGE, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
                 "ipam": {"type": "host-local", "dataDir": format!("{}/addresses", self.instance.run().display()),
                          "ranges": [[{"subnet": POD_SUBNET, "gateway": NODE_ADDRESS}]]}},
                {"type": "loopback"},
            ],
        });
        write(&self.etc.join("cni/10-bridge.conflist"), &network.to_string())?;
        Ok(self.component("containerd", [format!("--config={}", self.file("containerd.toml"))]))
    }

    /// The node's agent. Its settings suit a small or shared machine: it evicts and collects nothing for want of disk, since others fill the disk and empty it (0 % switches a
    /// threshold off).
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub(crate) fn kubelet(&self) -> Result<Component> {
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": self.pki.path("ca.crt")}},
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": format!("unix://{}", self.instance.containerd_socket().display()),
            "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", self.instance.unique_name()), "failCgroupV1": false,
            "clusterDNS": [DNS_ADDRESS], "clusterDomain": "cluster.local", "resolvConf": "",
            "evictionHard": {"memory.available": "20Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "failSwapOn": false, "imageGCHighThresholdPercent": 100, "makeIPTablesUtilChains": false,
            "maxPods": 200, "podLogsDir": self.instance.logs().join("pods"), "serializeImagePulls": false,
            "volumePluginDir": self.state("volume-plugins"),
        });
        write(&self.etc.join("kubelet.json"), &config.to_string())?;
        Ok(self.component(
            "kubelet",
            [
                format!("--config={}", self.file("kubelet.json")),
                format!("--kubeconfig={}", self.file("kubelet.kubeconfig")),
                format!("--root-dir={}", self.state("kubelet")),
                format!("--cert-dir={}/pki", self.state("kubelet")),
                format!("--hostname-override={NODE_NAME}"),
                format!("--node-ip={NODE_ADDRESS}"),
            ],
        ))
    }

    /// Service addresses. It masquerades all of it, so that answers between two pods on one bridge come back through the node.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub(crate) fn kube_proxy(&self) -> Result<Component> {
        let leave_alone =
            json!({"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"});
        let config: Value = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.file("kube-proxy.kubeconfig")},
            "clusterCIDR": POD_SUBNET, "conntrack": leave_alone, "hostnameOverride": NODE_NAME,
            "iptables": {"masqueradeAll": true, "minSyncPeriod": "100ms"}, "mode": "iptables",
        });
        write(&self.etc.join("kube-proxy.json"), &config.to_string())?;
        Ok(self.component("kube-proxy", [format!("--config={}", self.file("kube-proxy.json"))]))
    }

    /// The cluster's DNS, a process beside the cluster that knows cluster names only.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub(crate) fn coredns(&self) -> Result<Component> {
        let config = format!(
            "cluster.local:53 in-addr.arpa:53 {{\n  bind {NODE_ADDRESS}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {}\n    ttl 1\n  }}\n}}\n",
            self.file("coredns.kubeconfig")
        );
        write(&self.etc.join("Corefile"), &config)?;
        Ok(self.component("coredns", [format!("-conf={}", self.file("Corefile"))]))
    }

    /// What the API server is told once, as soon as it answers.
    #[must_use]
    pub(crate) fn first_objects() -> String {
        include_str!("first-objects.yaml").replace("DNS_ADDRESS", DNS_ADDRESS).replace("NODE_ADDRESS", NODE_ADDRESS)
    }

    fn component<const N: usize>(&self, name: &'static str, arguments: [String; N]) -> Component {
        Component { name, program: self.binaries.program(name), arguments: arguments.into() }
    }

    fn state(&self, name: &str) -> String {
        self.instance.state().join(name).display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.etc.join(name).display().to_string()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
