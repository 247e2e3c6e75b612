//! What a caller can choose about a cluster.

/// Choices that fit nearly every test as they are.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ClusterOptions {
    /// How often the controller manager looks at each HorizontalPodAutoscaler, as a Go duration
    #[arg(long, default_value = "15s")]
    pub hpa_sync_period: String,
    /// A further flag of kube-controller-manager, such as --kube-api-qps=500; may be given several times
    #[arg(long = "controller-manager-flag", allow_hyphen_values = true)]
    pub controller_manager_flags: Vec<String>,
    /// A further flag of kube-apiserver; may be given several times
    #[arg(long = "api-server-flag", allow_hyphen_values = true)]
    pub api_server_flags: Vec<String>,
    /// Only etcd, the API server and the controller manager: no node, so that no pod ever runs
    #[arg(long)]
    pub control_plane_only: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            hpa_sync_period: "15s".to_owned(),
            controller_manager_flags: Vec::new(),
            api_server_flags: Vec::new(),
            control_plane_only: false,
        }
    }
}

impl ClusterOptions {
    /// Looks at HorizontalPodAutoscalers every `period`, a Go duration such as `1s`, instead of every 15 seconds.
    #[must_use]
    pub fn hpa_sync_period(mut self, period: &str) -> Self {
        period.clone_into(&mut self.hpa_sync_period);
        self
    }

    /// Adds a flag of kube-controller-manager.
    #[must_use]
    pub fn controller_manager_flag(mut self, flag: &str) -> Self {
        self.controller_manager_flags.push(flag.to_owned());
        self
    }

    /// Adds a flag of kube-apiserver, such as an audit policy's.
    #[must_use]
    pub fn api_server_flag(mut self, flag: &str) -> Self {
        self.api_server_flags.push(flag.to_owned());
        self
    }

    /// Brings up no node: quicker and smaller, for tests that look at objects and run no pod.
    #[must_use]
    pub fn control_plane_only(mut self) -> Self {
        self.control_plane_only = true;
        self
    }

    /// The same choices as command line arguments.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<String> {
        let Self { hpa_sync_period, controller_manager_flags, api_server_flags, control_plane_only } = self;
        let mut arguments = vec![format!("--hpa-sync-period={hpa_sync_period}")];
        arguments.extend(controller_manager_flags.iter().map(|flag| format!("--controller-manager-flag={flag}")));
        arguments.extend(api_server_flags.iter().map(|flag| format!("--api-server-flag={flag}")));
        arguments.extend(control_plane_only.then(|| "--control-plane-only".to_owned()));
        arguments
    }
}
