# What Terraform and Config Connector granted, and somebody by hand.
kubectl apply --server-side -f samples/00-namespaces.yaml
change() { # ADD_OR_REMOVE SERVICE MEMBER
  gcloud run services "$1-iam-policy-binding" "$2" --region europe-west1 --member "$3" --role roles/run.invoker --condition None
}
change add checkout group:shop-oncall@acme.com
change add checkout serviceAccount:frontend@acme-prod.iam.gserviceaccount.com
change add checkout user:ada@acme.com
change remove checkout user:left-in-2023@acme.com
change add reports serviceAccount:frontend@acme-prod.iam.gserviceaccount.com
