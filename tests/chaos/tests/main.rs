//! One test binary: each module is a story. They share fixed loopback addresses, so `make e2e` runs them one at a time.

mod brokers;
mod drills;
mod first_use;
mod refusals;
mod restarts;
mod trust;

/// The members of `clusters/local`.
const AKS: &str = "aks-westeurope";
const EKS: &str = "eks-us-east-1";
const GKE: &str = "gke-us-central1";
