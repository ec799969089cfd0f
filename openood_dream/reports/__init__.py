"""What is made of finished runs and artifacts: tables, figures, the HTML report and a submission."""
