//! The story on AWS, for which moto stands in.

use super::Cloud;
use super::shell::Shell;
use crate::failure::Outcome;
use crate::services;

/// A key in moto. The operator opens it with its own identity.
pub struct Aws {
    key: String,
}

impl Aws {
    /// Makes the key.
    pub fn start(shell: &Shell) -> Outcome<Self> {
        println!("   This one lives in moto, a stand-in for AWS; its values are worth nothing.");
        let code = format!(
            "import boto3; print(boto3.client('kms', '{}').create_key(Description='demo')['KeyMetadata']['Arn'])",
            services::REGION
        );
        let python = shell.stage.plane.python();
        let key = shell
            .python(&python, &code, "on AWS: aws kms create-key")
            .ok_or("moto did not make a KMS key; see its log with `cargo xtask cluster --keep DIR`.")?;
        Ok(Self { key })
    }
}

impl Cloud for Aws {
    fn key(&self) -> &str {
        &self.key
    }

    fn seal(&self) -> String {
        format!(
            "  - name: aws
    awskms:
      kmsKeyID: {}
      region: {}
",
            self.key,
            services::REGION
        )
    }

    /// The operator's own identity may open a brought key in this namespace because a cluster admin grants the key.
    fn namespace(&self) -> String {
        format!(
            "  labels:
    autounseal.dev/operator-identity: allowed
  annotations:
    autounseal.dev/operator-identity-grants: {}
",
            self.key
        )
    }
}
