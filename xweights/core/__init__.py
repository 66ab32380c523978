"""Parameters, layouts, selection and the protocols that backends implement."""
